"""Structured logs: for people on a terminal, JSON lines otherwise, and never a secret."""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MASK = "***"
_SECRET_KEYS = re.compile(r"password|passwd|secret|token|authorization|private_key", re.IGNORECASE)
# scheme://user:password@ and the like: whatever stands between :// and the last @.
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*(?:/[^\s@/]*)*@")


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs, the libraries' included, to ``stream``.

    ``log_format`` is ``text``, ``json``, or ``auto`` for text on a terminal and
    JSON otherwise; ``level`` is the least important one that is written.
    """
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        mask_secrets,
    ]
    renderer: structlog.typing.Processor
    if as_text:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
        shared.insert(0, structlog.processors.format_exc_info)
    else:
        renderer = structlog.processors.JSONRenderer()
        shared.insert(0, structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[level], logging.WARNING if level != "debug" else 0))


def mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Take credentials out of URLs, and the values of what is called a secret."""
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = _MASK
        elif isinstance(value, str) and "://" in value:
            event[key] = _CREDENTIALS.sub(f"{_MASK}@", value)
    return event
