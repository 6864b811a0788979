"""The process that logs what native libraries of a daemon write to standard error.

It reads lines from standard input until nobody is left who writes, and writes them to
standard error as lines of the log: masked, bounded, and few of a kind. A line that begins
with the token names the format and level from there on. It imports little, since it is there for as
long as the daemon.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from wasmkilnd.telemetry.logs.masking import Masker
from wasmkilnd.telemetry.logs.repeats import STANDARD_ERROR_LINES, Line, Repeats

EVENT = "standard error"

_LINE_BYTES = 64 * 1024
_HEAD_LENGTH = 300
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LEVELS = ("debug", "info", "warning", "error")
# How a line of gRPC's core begins, and where it says that it was written.
_SEVERITY = re.compile(r"([IW])\d{4} ")
_PLACE = re.compile(r"[\w./-]{1,100}\.(?:cc|c|h|cpp):\d+\]")


class Relay:
    """Makes lines of the log of what is written, whatever that is."""

    def __init__(self, write: Callable[[str], object], *, terminal: bool) -> None:
        self._write = write
        self._terminal = terminal
        self._text = False
        self._level = "info"
        self._masker = Masker()
        self._repeats = Repeats(self._write_line)

    def configure(self, log_format: str, level: str) -> None:
        """Have lines look like this from now on."""
        self._text = log_format == "text" or (log_format == "auto" and self._terminal)
        self._level = level

    def log(self, words: str) -> None:
        """Write a line about ``words``, unless there are too many of them."""
        severity = _SEVERITY.match(words)
        level = {"I": "info", "W": "warning"}.get(severity[1] if severity else "", "error")
        if _LEVELS.index(level) < _LEVELS.index(self._level):
            return
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        head = {"timestamp": now, "level": level, "event": EVENT}
        line = self._masker.line({**head, "text": words})
        place = _PLACE.search(words, 0, _HEAD_LENGTH)
        kind = place[0] if place else ""
        if self._level == "debug" or self._repeats.lets_through(kind, STANDARD_ERROR_LINES):
            self._write_line(line)
        else:
            self._repeats.leave_out(kind, line)

    def end(self) -> None:
        """Write what was left out."""
        self._repeats.end_intervals(all_of_them=True)

    def _write_line(self, line: Line) -> None:
        if not self._text:
            self._write(json.dumps(line) + "\n")
            return
        # As the daemon's own lines look, but for the colours.
        fields = {**line}
        head = f"{fields.pop('timestamp')} [{fields.pop('level'):<9}] {fields.pop('event'):<30}"
        words = " ".join(f"{key}={value!a}" for key, value in fields.items())
        self._write(f"{head} {words}\n")


def lines_of(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Yield lines, those that are too long in pieces."""
    rest = b""
    while data := read():
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) >= _LINE_BYTES:
            yield rest
            rest = b""
    yield rest


def main(token: str, log_format: str, level: str) -> None:
    """Log lines until the end of standard input."""
    # The daemon decides when this ends: it has the other end.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)

    def write(line: str) -> None:
        sys.stderr.write(line)
        sys.stderr.flush()

    relay = Relay(write, terminal=sys.stderr.isatty())
    relay.configure(log_format, level)
    for line in lines_of(lambda: os.read(0, _LINE_BYTES)):
        words = line.decode(errors="backslashreplace").strip()
        if words.startswith(token):
            _, log_format, level = words.split()
            relay.configure(log_format, level)
        elif words:
            relay.log(words)
    relay.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
