"""How an event becomes a line of the log: text on a terminal, JSON otherwise.

The daemon's own events and those of libraries pass here: ``masking`` decides what may go into
a line, ``repeats`` how many lines of a kind are written.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from wasmkilnd.telemetry.logs import repeats
from wasmkilnd.telemetry.logs.journal import is_journal, marked
from wasmkilnd.telemetry.logs.masking import ExcInfo, Masker
from wasmkilnd.telemetry.logs.repeats import Repeats
from wasmkilnd.telemetry.logs.writer import DROPPED

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs, the libraries' included, to ``stream``, one line each but for tracebacks.

    ``log_format`` is ``text``, ``json``, or ``auto`` for text on a terminal and JSON otherwise.
    ``level`` is the least important level that is written. Libraries write warnings and
    errors only, except at ``debug``. Lines that repeat are limited, except at ``debug``.

    The last call counts. Logging never raises, whatever is logged and whatever becomes of
    the stream.
    """
    terminal = stream.isatty()
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    render = _text_renderer(colors=terminal) if as_text else _render_json
    if _goes_to_journal(stream):
        render = _with_priority(render)
    flush()
    sink = _Sink(stream)
    pipeline = _Pipeline(render, sink, limited=level != "debug")
    global _pipeline
    _pipeline = pipeline
    structlog.configure(
        processors=[pipeline],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_names: sink,
        context_class=dict,
        # A cached logger would go on writing to the stream of an earlier call.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler(pipeline, sink)]
    root.setLevel(logging.DEBUG if level == "debug" else max(_LEVELS[level], logging.WARNING))


_HEAD = ("timestamp", "level", "event")
# An event's kind, where its event, code and reason do not name it.
_KIND = "_kind"
# The audit limits those that strangers can cause by itself.
# Counts of dropped lines add up only if each is told.
_LIMITS = {"call": repeats.CALLS, "audit": repeats.UNLIMITED, DROPPED: repeats.UNLIMITED}
_pipeline: _Pipeline | None = None
_fields: dict[str, Callable[[], str]] = {}


def add_field(name: str, value: Callable[[], str]) -> None:
    """Have each line carry what ``value`` returns for the task that logs it, unless it is empty."""
    _fields[name] = value


def flush() -> None:
    """Write what ``repeats`` holds back."""
    if _pipeline:
        _pipeline.repeats.flush()


atexit.register(flush)


class _Pipeline:
    """Turns an event into the line that is written."""

    def __init__(self, render: Processor, sink: _Sink, *, limited: bool) -> None:
        self._render = render
        self._sink = sink
        self._limited = limited
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._masker = Masker()
        self.repeats = Repeats(self._write)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        """Return the line. Raise DropEvent where there were too many of its kind."""
        allowed, limit = True, repeats.LIMIT
        try:
            kind = event.pop(_KIND, None) or _kind(method, event)
            limit = _LIMITS.get(str(event.get("event")), repeats.LIMIT)
            allowed = not self._limited or self.repeats.allows(kind, limit)
            event = structlog.contextvars.merge_contextvars(logger, method, event)
            for name, value in _fields.items():
                if name not in event and (text := value()):
                    event[name] = text
            # A library's record may have a level of its own.
            event.setdefault("level", "error" if method == "exception" else method)
            event = self._stamp(logger, method, event)
            failure = _exc_info(event.pop("exc_info", None))
            # The fields that every line has go first, so that there is room for them.
            head = {name: event.pop(name) for name in _HEAD if name in event}
            line = self._masker.line({**head, **event})
            if allowed:
                if failure:
                    line["exception"] = self._masker.traceback(failure)
                return str(self._render(logger, method, line))
            if failure:
                line["failure"] = failure[0].__name__
            self.repeats.hold_back(kind, line, limit)
        except Exception as failure:  # a line that cannot be made must not fail a call
            if allowed:
                return _lost(failure)
        raise structlog.DropEvent

    def _write(self, line: dict[str, object]) -> None:
        try:
            self._sink.msg(str(self._render(None, str(line.get("level", "")), line)))
        except Exception as failure:
            self._sink.msg(_lost(failure))


def _kind(method: str, event: EventDict) -> Hashable:
    # These fields have values from short lists in the code: no caller can choose one.
    named = (event.get("event"), event.get("code"), event.get("reason"))
    return method, *(value[:64] for value in named if isinstance(value, str))


def _exc_info(given: object) -> ExcInfo | None:
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    if isinstance(given, tuple):
        found = given
    elif given:
        found = sys.exc_info()
    else:
        return None
    return found if len(found) == 3 and isinstance(found[1], BaseException) else None


def _lost(failure: Exception) -> str:
    # Only the names of types: the values caused the failure, and are not masked.
    lost = {
        "timestamp": "",
        "level": "error",
        "event": "log line lost",
        "failure": type(failure).__name__,
        "where": _where(failure),
    }
    return json.dumps(lost)


class _Sink:
    """Writes whole lines; a structlog logger of which every level is the same. Never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Not a plain lock: a finalizer that runs during a write may log too.
        self._lock = RLock()

    def msg(self, line: str) -> None:
        """Write ``line``."""
        # The reader may be gone, the disk full, or the encoding without such a letter. The
        # daemon cannot report that anywhere, and goes on serving.
        with contextlib.suppress(Exception), self._lock:
            try:
                self._stream.write(line + "\n")
            except UnicodeEncodeError:
                self._stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = msg
    error = err = fatal = critical = exception = failure = msg


class _LibraryHandler(logging.Handler):
    """Turns the standard library's log records into the same lines."""

    def __init__(self, pipeline: _Pipeline, sink: _Sink) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``; never raises."""
        try:
            message = record.getMessage()
        except Exception:  # a library's arguments that do not fit its format
            message = str(record.msg)
        event: dict[str, Any] = {"event": message, "logger": record.name}
        # The kind is the place in the library's code, since the message may hold callers' text.
        event[_KIND] = (record.name, record.lineno, message[:24])
        if record.exc_info:
            event["exc_info"] = record.exc_info
        with contextlib.suppress(structlog.DropEvent):
            self._sink.msg(self._pipeline(None, record.levelname.lower(), event))


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # The fields that every line has go first, where people look for them.
    head = {name: event.pop(name, "") for name in _HEAD}
    return json.dumps({**head, **event})


def _text_renderer(colors: bool) -> Processor:
    console = structlog.dev.ConsoleRenderer(
        colors=colors,
        # Not rich's, which prints every local variable, secrets included.
        exception_formatter=structlog.dev.plain_traceback,
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        for key, value in event.items():
            if isinstance(value, str) and not value.isprintable():
                event[key] = _printable(value, keep="\n" if key == "exception" else "")
        return str(console(logger, method, event))

    return render


def _with_priority(render: Processor) -> Processor:
    def rendered(logger: WrappedLogger, method: str, event: EventDict) -> str:
        level = str(event.get("level", ""))  # Before the renderer takes it out.
        return marked(str(render(logger, method, event)), level)

    return rendered


def _goes_to_journal(stream: TextIO) -> bool:
    try:
        return is_journal(stream.fileno())
    except (OSError, ValueError):  # It is no file, or closed.
        return False


def _printable(text: str, keep: str) -> str:
    # A name from a caller's module must not control an operator's terminal, or forge a line.
    return "".join(
        each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text
    )


def _where(failure: Exception) -> str:
    frames = traceback.extract_tb(failure.__traceback__)
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else ""
