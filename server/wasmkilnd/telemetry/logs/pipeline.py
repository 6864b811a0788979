"""Structured logs: for people on a terminal, JSON lines otherwise; never a secret, never a flood.

Every line passes here, whoever wrote it: ``masking`` hides secrets, ``bounds`` says how long
a line may be, ``repeats`` how many there may be of a kind.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Hashable
from threading import RLock
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from wasmkilnd.telemetry.logs import repeats
from wasmkilnd.telemetry.logs.masking import ExcInfo, Masker
from wasmkilnd.telemetry.logs.repeats import Repeats

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs, the libraries' included, to ``stream``, one line each but for tracebacks.

    Of lines that repeat, some are left out and counted, unless ``level`` is ``debug``.

    ``log_format`` is ``text``, ``json``, or ``auto`` for text on a terminal and
    JSON otherwise. ``level`` is the least important one that is written; of the
    libraries' lines, warnings at least, and all of them at ``debug``. May be
    called again; the last call counts. Logging never raises, whatever is logged
    and whatever becomes of the stream.
    """
    terminal = stream.isatty()
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    render = _text_renderer(colors=terminal) if as_text else _render_json
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
# Where a line says of which kind it is, if that is not to be seen of it.
_KIND = "_kind"
_pipeline: _Pipeline | None = None


def flush() -> None:
    """Write now what was left out of the lines that repeat."""
    if _pipeline:
        _pipeline.repeats.end_intervals(all_of_them=True)


atexit.register(flush)


class _Pipeline:
    """From an event to the line that is written."""

    def __init__(self, render: Processor, sink: _Sink, *, limited: bool) -> None:
        self._render = render
        self._sink = sink
        self._limited = limited
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._masker = Masker()
        self.repeats = Repeats(self._write)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        """Return the line. Raises DropEvent where it is one of too many."""
        written = True
        try:
            kind = event.pop(_KIND, None) or _kind(method, event)
            most = repeats.CALL_LINES if event.get("event") == "call" else repeats.LINES
            written = not self._limited or self.repeats.lets_through(kind, most)
            event = structlog.contextvars.merge_contextvars(logger, method, event)
            # A library's line, or a hand-written one, may have either already.
            event.setdefault("level", "error" if method == "exception" else method)
            event = self._stamp(logger, method, event)
            failure = _exc_info(event.pop("exc_info", None))
            # What every line has comes first, so that there is room for it.
            head = {name: event.pop(name) for name in _HEAD if name in event}
            line = self._masker.line({**head, **event})
            if written:
                if failure:
                    line["exception"] = self._masker.traceback(failure)
                return str(self._render(logger, method, line))
            if failure:
                line["failure"] = failure[0].__name__
            self.repeats.leave_out(kind, line)
        except Exception as failure:  # a line that cannot be made must not fail a call
            if written:
                return _lost(failure)
        raise structlog.DropEvent

    def _write(self, line: dict[str, object]) -> None:
        try:
            self._sink.msg(str(self._render(None, str(line.get("level", "")), line)))
        except Exception as failure:
            self._sink.msg(_lost(failure))


def _kind(method: str, event: EventDict) -> Hashable:
    # The values that come from short lists of ours, and tell what a caller cannot choose.
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
    # Names of types only: the values are what made the trouble, and are not masked.
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
        # A finalizer that runs in the midst of a line may log another.
        self._lock = RLock()

    def msg(self, line: str) -> None:
        """Write ``line``."""
        # The reader is gone, the disk is full, or the encoding has no such letter. There is
        # nobody left to tell, and the daemon's work is more than its diary.
        with contextlib.suppress(Exception), self._lock:
            try:
                self._stream.write(line + "\n")
            except UnicodeEncodeError:
                self._stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = msg
    error = err = fatal = critical = exception = failure = msg


class _LibraryHandler(logging.Handler):
    """Takes the standard library's log records into the same lines."""

    def __init__(self, pipeline: _Pipeline, sink: _Sink) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``; never raises."""
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit the format: a library's slip
            message = str(record.msg)
        event: dict[str, Any] = {"event": message, "logger": record.name}
        # By the place in the library's code, since its words may hold what somebody sent.
        event[_KIND] = (record.name, record.lineno, message[:24])
        if record.exc_info:
            event["exc_info"] = record.exc_info
        with contextlib.suppress(structlog.DropEvent):
            self._sink.msg(self._pipeline(None, record.levelname.lower(), event))


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # First what every line has, for eyes that scan the start of lines.
    head = {name: event.pop(name, "") for name in _HEAD}
    return json.dumps({**head, **event})


def _text_renderer(colors: bool) -> Processor:
    console = structlog.dev.ConsoleRenderer(
        colors=colors,
        # Not rich's, which prints every local variable, the secret ones too.
        exception_formatter=structlog.dev.plain_traceback,
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        for key, value in event.items():
            if isinstance(value, str) and not value.isprintable():
                event[key] = _printable(value, keep="\n" if key == "exception" else "")
        return str(console(logger, method, event))

    return render


def _printable(text: str, keep: str) -> str:
    # A name from a caller's module must not steer somebody's terminal, or forge a line.
    return "".join(
        each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text
    )


def _where(failure: Exception) -> str:
    frames = traceback.extract_tb(failure.__traceback__)
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else ""
