"""Structured logs: for people on a terminal, JSON lines otherwise, and never a secret."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from threading import Lock
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from wasmkilnd.telemetry.masking import Masker

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs, the libraries' included, to ``stream``, one line each but for tracebacks.

    ``log_format`` is ``text``, ``json``, or ``auto`` for text on a terminal and
    JSON otherwise. ``level`` is the least important one that is written; of the
    libraries' lines, warnings at least, and all of them at ``debug``. May be
    called again; the last call counts. Logging never raises, whatever is logged
    and whatever becomes of the stream.
    """
    terminal = stream.isatty()
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    render = _text_renderer(colors=terminal) if as_text else _render_json
    pipeline = _Pipeline(render)
    sink = _Sink(stream)
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


class _Pipeline:
    """From an event to the line that is written."""

    def __init__(self, render: Processor) -> None:
        self._render = render
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._masker = Masker()

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        try:
            event = structlog.contextvars.merge_contextvars(logger, method, event)
            # A library's line, or a hand-written one, may have either already.
            event.setdefault("level", "error" if method == "exception" else method)
            event = self._stamp(logger, method, event)
            if "exc_info" in event:
                # Before masking: tracebacks quote URLs.
                event = structlog.processors.format_exc_info(logger, method, event)
            event = self._masker.mapping(event)
            return str(self._render(logger, method, event))
        except Exception as failure:  # a line that cannot be made must not fail a call
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
        self._lock = Lock()

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
        if record.exc_info:
            event["exc_info"] = record.exc_info
        self._sink.msg(self._pipeline(None, record.levelname.lower(), event))


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # First what every line has, for eyes that scan the start of lines.
    head = {name: event.pop(name, "") for name in ("timestamp", "level", "event")}
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
