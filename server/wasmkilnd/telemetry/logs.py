"""The log: one line for each event of the daemon and its libraries, on standard error.

A part of the daemon logs with ``structlog.get_logger().info("event", field=value)``: the event is
a few fixed words, the fields are values. Events and fields are listed in docs/reference/logs.md;
operators search for them, so a field's name stays. Settings: ``log_format``, ``log_level``.

Who logs copies the event into a line, with ``***`` for secrets and long values cut, and counts it:
of each kind of line 20 in 10 s are written (of ``call`` 100 in 1 s), then the last one with
``left_out``, the number of the others. A thread renders lines (JSON, or text on a terminal) and
writes them; it drops and counts what nobody reads in time. What native libraries print is not of
the log: it goes to standard error as it is.

Promises: logging never raises, never fails a call and never waits for a reader. No line is longer
than 64 KiB, no secret gets into one, and callers cannot fill the disk. At level ``debug`` lines are
cut and masked but not limited in number.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache, partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final, NoReturn, TextIO

import structlog

Line = dict[str, Any]
Render = Callable[[Line], str]
Tell = Callable[[Hashable, Any, int], object]

log = structlog.get_logger("wasmkilnd")

# What may go into a line.

MASK: Final = "***"

_LINE_LENGTH = 60_000
_TRACEBACK_LENGTH = 12 * 1024
_LENGTH = 2048  # of any other value
_SHORT = 256
_ITEMS = 64  # of a list or a mapping
_DEPTH = 4

_SECRET = re.compile(r"(?i)passw|secret|token|credent|authoriz|cookie|(api|private|signing)_?key")
_is_secret = lru_cache(maxsize=1024)(_SECRET.search)
_WORD = re.compile(r"\S+")
# Lengths are bounded, or a crafted text would make the search take quadratic time.
_QUERY = re.compile(
    r"(?i)([?&;](?:user(?:name)?|[a-z_-]{0,32}(?:passw[a-z]{0,8}|token|secret))=)[^&;#\s\"'<>]*"
)
_LONG_LINE = re.compile(r"(.{1024}).+")


def mask_text(text: str) -> str:
    """Return ``text`` with ``***`` for the credentials of every URL in it."""
    # Nearly every text has none, and to look for that is ten times faster than a regex.
    return _QUERY.sub(rf"\1{MASK}", _WORD.sub(_mask_word, text)) if "://" in text else text


def _mask_word(match: re.Match[str]) -> str:
    # Up to the last "@": a password may hold "/" and "@" that its author did not encode.
    word = match[0]
    start, end = word.find("://") + 3, word.rfind("@")
    return f"{word[:start]}{MASK}{word[end:]}" if 3 <= start <= end else word


def _text(text: str) -> str:
    """Return ``text``, masked; of a long one its beginning, and how much is missing."""
    if len(text) <= _LENGTH:
        return mask_text(text)
    # A cut URL would no longer show where its password ends, so it is left out whole.
    kept, space, last = text[:_LENGTH].rpartition(" ")
    kept += space if "://" in last else space + last
    return f"{mask_text(kept)}… ({len(text):,} characters, {len(kept):,} shown)"


def _traceback(text: str) -> str:
    """Return a traceback, masked; of a long one its beginning and its end."""
    text = _LONG_LINE.sub(r"\1…", mask_text(text))
    cut = f"{text[:_LENGTH]}… ({len(text):,} characters) …{text[_LENGTH - _TRACEBACK_LENGTH :]}"
    return text if len(text) <= _TRACEBACK_LENGTH else cut


def _plain(value: object, depth: int = 0) -> object:
    """Return a copy of ``value`` of texts, numbers, lists and dicts only: masked, and bounded."""
    value = value.value if isinstance(value, Enum) else value
    if value is None or (isinstance(value, int | float) and -1e38 < value < 1e38):
        return value  # JSON knows no NaN
    if isinstance(value, Mapping | list | tuple | set | frozenset) and depth < _DEPTH:
        more = [f"… ({len(value):,} items, {_ITEMS} shown)"] if len(value) > _ITEMS else []
        if isinstance(value, Mapping):
            first = {_text(str(key)): each for key, each in islice(value.items(), _ITEMS)}
            return _fields(first, depth + 1) | dict.fromkeys(more, "")
        return [_plain(each, depth + 1) for each in islice(value, _ITEMS)] + more
    return _text(str(value))


def _fields(values: Mapping[str, Any], depth: int = 0) -> Line:
    """Return a copy of named values, as plain as ``_plain`` makes them."""
    fields = {}
    for name, value in values.items():
        # Nearly every value is short and plain, and each call writes a dozen.
        kind = type(value)
        if kind is not int and (kind is not str or len(value) > _SHORT or "://" in value):
            value = _plain(value, depth)
        fields[name] = MASK if value and _is_secret(name) else value
    return fields


# How many lines of a kind are written.


KINDS: Final = 256

# One for all, so that no two threads wait for each other. Reentrant: a finalizer that runs while
# it is held may log too.
_lock = threading.RLock()


class Repeats:
    """Allows so many lines of each kind in an interval, which all kinds share. Thread-safe.

    When an interval ends, ``write`` gets each kind with more lines (None for all that are too many
    to tell apart), the last of its lines that was not allowed, and how many those were. So a state
    that goes back and forth ends in the log as it is. Any thread may call ``write``.
    """

    def __init__(self, write: Tell, interval_s: float, kinds: int = KINDS) -> None:
        """Tell ``kinds`` apart at a time."""
        self._write, self._interval_s, self._most = write, interval_s, kinds
        self._until_s = 0.0
        self._seen: Counter[Hashable] = Counter()
        self._held: dict[Hashable, tuple[Any, int]] = {}

    def allows(self, name: Hashable, lines: int, line: object) -> bool:
        """Count a line; return whether to write it now."""
        now_s = time.monotonic()
        if self._until_s <= now_s:
            self.flush()
        with _lock:
            if not self._seen:
                self._until_s = now_s + self._interval_s
            if name not in self._seen and len(self._seen) >= self._most:
                name = None
            self._seen[name] += 1
            if self._seen[name] <= lines:
                return True
            if not self._held:
                timer = threading.Timer(self._until_s - now_s, self.flush, (self._until_s,))
                timer.daemon = True
                with suppress(RuntimeError):  # there are too many threads
                    timer.start()
            self._held[name] = line, self._seen[name] - lines
            return False

    def flush(self, until_s: float | None = None) -> None:
        """End the interval now; with ``until_s`` only if it is the one that ends then."""
        with _lock:
            if until_s not in (None, self._until_s):
                return
            held, self._held, self._seen = self._held, {}, Counter()
        for name, (last, count) in held.items():  # outside the lock: ``write`` may wait
            self._write(name, last, count)


# From an event to its line.

# Returns what each line of the running task has besides its own fields: set it to add some.
context: Callable[[], dict[str, str]] = dict


def _process(_logger: object, level: str, event: Any) -> NoReturn:
    """Take an event of structlog, which has nothing left to do then."""
    _take(level, event)
    raise structlog.DropEvent


class _Libraries(logging.Handler):
    """Takes the events of the standard library's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take an event."""
        message = str(record.msg)
        with suppress(Exception):  # a library's arguments that do not fit its format
            message = record.getMessage()
        # The kind is the place in the library's code, since the message may hold callers' text.
        event = {"event": message, "logger": record.name, "exc_info": record.exc_info}
        _take(record.levelname.lower(), event, (record.name, record.lineno, message[:24]))


def _take(level: str, event: Line, kind: Hashable = None) -> None:
    """Send on the line of an event, or count it. Never raises."""
    try:
        # Codes and reasons come from short lists in the code: no caller can choose one.
        kind = kind or f"{level} {event['event'][:64]} {event.get('code')} {event.get('reason')}"
        line = _line_of(level, event)
    except Exception as failure:  # a line that cannot be made must not fail a call
        line = _line_of("error", {"event": "log line lost", "failure": type(failure).__name__})
    # The audit limits by itself those that strangers can cause.
    lines = sys.maxsize if line["event"] == "audit" else LIMIT
    if not _limited or _repeats.allows(kind, lines, lambda: line):
        _send(line)


def note_call(level: str, words: Line) -> None:
    """Log how a call ended, as structlog would log the event ``call``, at a tenth of its cost.

    Where calls are many, few have a line that is written: so it is made then. Its values are texts
    and numbers, which nothing changes.
    """
    if _NUMBERS[level.upper()] < _least:
        return
    made = partial(_line_of, level, {"event": "call", **words}, time.time())
    if not _limited or _calls.allows((level, words["code"], words.get("reason")), _CALLS, made):
        _send(made())


def _line_of(level: str, event: Line, at_s: float | None = None) -> Line:
    """Return the line of an event. Raises what the ``str`` of a value raises."""
    failure = {"exc_info": event.pop("exc_info", None)}
    line = {"timestamp": now(at_s), "level": level, "event": ""} | _fields(context() | event)
    if failure["exc_info"]:
        told = structlog.processors.format_exc_info(None, level, failure)
        line["exception"] = _traceback(told.get("exception", ""))
    return line


def now(at_s: float | None = None) -> str:
    """Return the time as lines have it, or another one."""
    at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _renderer(stream: TextIO, log_format: str) -> Render:
    """Return what makes a line's text: text on a terminal, JSON otherwise."""
    terminal = stream.isatty()
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    # Not rich's tracebacks, which print every local variable, secrets included.
    plain = structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)
    journal = is_journal(stream)

    def render(line: Line) -> str:
        text = str(console(None, "", _printable(line))) if as_text else json.dumps(line)
        if len(text) > _LINE_LENGTH:
            cut = f"{text[:_LENGTH]}… ({len(text):,} characters)"
            return render(dict(islice(line.items(), 3)) | {"cut": cut})
        return marked(text, line["level"]) if journal else text

    return render


def _printable(line: Line) -> Line:
    # A name from a caller's module must not control an operator's terminal, or forge a line.
    def escaped(name: str, text: str) -> str:
        kept = "\n" if name == "exception" else ""
        return "".join(it if it.isprintable() or it in kept else ascii(it)[1:-1] for it in text)

    return {name: escaped(name, it) if isinstance(it, str) else it for name, it in line.items()}


# systemd's journal: ``<4>`` before a line says that it is a warning. See sd-daemon(3).

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def is_journal(stream: TextIO) -> bool:
    """Return whether what is written to ``stream`` goes to systemd's journal.

    systemd names the stream that it reads in JOURNAL_STREAM, as device and inode: so a daemon whose
    standard error was sent elsewhere marks nothing. See systemd.exec(5).
    """
    with suppress(OSError, ValueError):  # it is no file, or closed
        found = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


def marked(text: str, level: str) -> str:
    """Return ``text`` with the priority of ``level`` before each of its lines."""
    return re.sub(r"(?m)^", f"<{_PRIORITIES.get(level, 3)}>", text)


# Where lines go.

# So many wait for the reader.
LINES: Final = 4096
_PAUSE_S = 0.02

_send: Callable[[Line], object] = print
_limited = True
_NUMBERS = logging.getLevelNamesMapping()
_least = 0
_writer: Writer | None = None


def _tell_left_out(_kind: Hashable, last: Callable[[], Line], count: int) -> None:
    _send({**last(), "left_out": count - 1})


# Lines of a kind in 10 s.
LIMIT: Final = 20
_repeats = Repeats(_tell_left_out, 10.0)
# A call has its line for each outcome. The interval is short so that a burst of calls writes as
# little as the same number spread out: no more than 42 KB of log in any second.
_calls, _CALLS = Repeats(_tell_left_out, 1.0), 100


def flush() -> None:
    """Write the lines that were held back."""
    _calls.flush()
    _repeats.flush()


def configure(log_format: str, level: str, stream: TextIO) -> None:
    """Send all logs, the libraries' included, to ``stream``, one line each but for tracebacks.

    ``log_format`` is ``text``, ``json``, or ``auto`` for text on a terminal and JSON otherwise.
    ``level`` is the least important level that is written. Libraries write warnings and
    errors only, except at ``debug``. Lines that repeat are limited, except at ``debug``.

    The last call counts. Inside ``standard_error``, its thread writes the lines.
    """
    global _send, _limited, _least
    flush()
    _limited = level != "debug"
    render = _renderer(stream, log_format)
    _send = partial(_writer.put if _writer else partial(_print, stream), render)
    _least = number = _NUMBERS[level.upper()]
    wrapper = structlog.make_filtering_bound_logger(number)
    structlog.configure([_process], wrapper, logger_factory=lambda *_names: None)
    root = logging.getLogger()
    root.handlers[:] = [_Libraries()]
    root.setLevel(max(number, logging.WARNING) if _limited else number)


def _print(stream: TextIO, render: Render, line: Line) -> None:
    with suppress(Exception):  # the reader is gone, or the disk full
        stream.write(f"{render(line)}\n")
        stream.flush()


def dropped_lines() -> int:
    """Return how many lines of the daemon were dropped: nobody read them in time."""
    return _writer.dropped if _writer else 0


@contextmanager
def standard_error(log_format: str, level: str) -> Iterator[None]:
    """Have a thread write all logs, and what Python itself would print, to standard error."""
    global _writer
    blocking = os.get_blocking(2)
    # Native code must not wait for the reader either. But other users of a terminal would notice.
    os.set_blocking(2, blocking and os.isatty(2))
    writer = _writer = Writer(2)
    configure(log_format, level, sys.stderr)
    logging.captureWarnings(True)
    threading.excepthook = partial(_failed, "a thread failed", "thread")
    sys.unraisablehook = partial(_failed, "error ignored", "object")
    try:
        yield
    finally:
        flush()
        ended, _writer = writer.end(2.0), None
        os.set_blocking(2, blocking)
        if not ended:  # what follows must not wait for the reader either
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        configure(log_format, level, sys.stderr)


def _failed(event: str, what: str, told: Any) -> None:
    log.error(event, where=repr(getattr(told, what)), exc_info=told.exc_value)


class Writer:
    """A thread that renders and writes lines, however long the reader takes. Thread-safe.

    Lines that wait are bounded in number. What comes on top, and what cannot be written (the reader
    is gone, the disk full), is dropped and counted, and a line says so later.
    """

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._queue: SimpleQueue[tuple[Render, Line] | None] = SimpleQueue()
        # What ends the last write, if that was half a line: the disk was full.
        self._torn = ""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, render: Render, line: Line) -> None:
        """Have a line written after all others, or count it."""
        with _lock:
            if self._queue.qsize() >= LINES:
                self.dropped += 1
            else:
                self._queue.put((render, line))

    def end(self, limit_s: float) -> bool:
        """Write what waits, and end.

        Return False if that takes longer: then the thread may still write to the descriptor.
        """
        self._queue.put(None)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        told = 0
        while waiting := self._queue.get():
            written = self._write(*waiting)
            with _lock:
                self.dropped += not written
                untold = self.dropped - told
            # Only then, so that a reader who reads now and then does not get these alone.
            if untold and written and self._queue.qsize() <= LINES // 2:
                told += untold
                event = {"event": "log lines dropped", "lines": untold}
                self._write(waiting[0], _line_of("error", event))
            if self._queue.empty():
                # Lines of a burst come together: to wake for each costs calls more than the line.
                time.sleep(_PAUSE_S)

    def _write(self, render: Render, line: Line) -> bool:
        """Write a line; return whether that was possible."""
        try:
            left = f"{self._torn}{render(line)}\n".encode(errors="backslashreplace")
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                    self._torn = "\n" if left else ""
                except BlockingIOError:
                    select.select([], [self._descriptor], [])
        except Exception:
            return False
        return True
