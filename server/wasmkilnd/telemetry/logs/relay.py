"""The relay process: it logs what a daemon's native libraries write to standard error.

The relay reads lines from standard input until its end, and writes each to standard error as a
line of the log: masked, bounded, and limited in number. A line that begins with the token is
the daemon's: it sets the format and level from there on. The relay lives as long as the
daemon, so it imports little. It always reads, or native code in the daemon would wait: lines that
nobody reads at its other end it drops.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from wasmkilnd.telemetry.logs.journal import is_journal, marked
from wasmkilnd.telemetry.logs.masking import Masker
from wasmkilnd.telemetry.logs.repeats import STANDARD_ERROR, Line, Repeats
from wasmkilnd.telemetry.logs.writer import DROPPED, LineWriter

EVENT = "standard error"

_LINE_BYTES = 64 * 1024
_END_S = 2.0
_HEAD_LENGTH = 300
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LEVELS = ("debug", "info", "warning", "error")
# A line of gRPC's core begins with its severity, and then names the place in the source.
_SEVERITY = re.compile(r"([IW])\d{4} ")
_PLACE = re.compile(r"[\w./-]{1,100}\.(?:cc|c|h|cpp):\d+\]")


class Relay:
    """Turns lines of text into lines of the log."""

    def __init__(
        self, write: Callable[[str], object], *, terminal: bool, journal: bool = False
    ) -> None:
        """``journal``: lines go to systemd's journal, and begin with their priority."""
        self._write = write
        self._journal = journal
        self._terminal = terminal
        self._text = False
        self._level = "info"
        self._masker = Masker()
        self._repeats = Repeats(self._write_line)

    def configure(self, log_format: str, level: str) -> None:
        """Set the format and level of lines from now on."""
        self._text = log_format == "text" or (log_format == "auto" and self._terminal)
        self._level = level

    def log(self, text: str) -> None:
        """Log ``text``, unless too many lines came from the same place."""
        severity = _SEVERITY.match(text)
        level = {"I": "info", "W": "warning"}.get(severity[1] if severity else "", "error")
        if _LEVELS.index(level) < _LEVELS.index(self._level):
            return
        line = self._masker.line({**_head(level, EVENT), "text": text})
        place = _PLACE.search(text, 0, _HEAD_LENGTH)
        kind = place[0] if place else ""
        if self._level == "debug" or self._repeats.allows(kind, STANDARD_ERROR):
            self._write_line(line)
        else:
            self._repeats.hold_back(kind, line, STANDARD_ERROR)

    def tell_dropped(self, count: int) -> None:
        """Log that so many lines were dropped, since nobody read them."""
        self._write_line({**_head("error", DROPPED), "lines": count})

    def end(self) -> None:
        """Write what ``repeats`` holds back."""
        self._repeats.flush()

    def _write_line(self, line: Line) -> None:
        text = self._as_text(line) if self._text else json.dumps(line)
        self._write((marked(text, str(line["level"])) if self._journal else text) + "\n")

    def _as_text(self, line: Line) -> str:
        """Return the same as the daemon's own lines are, without colours."""
        fields = {**line}
        head = f"{fields.pop('timestamp')} [{fields.pop('level'):<9}] {fields.pop('event'):<30}"
        rest = " ".join(f"{key}={value!a}" for key, value in fields.items())
        return f"{head} {rest}"


def _head(level: str, event: str) -> Line:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"timestamp": now, "level": level, "event": event}


def lines_of(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Yield lines; a line that is too long comes in pieces."""
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
    # The relay ends when the daemon closes the pipe, not by a signal to its group.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)

    writer = LineWriter(2, lambda count: relay.tell_dropped(count))
    relay = Relay(
        lambda line: writer.write(line.encode()),
        terminal=sys.stderr.isatty(),
        journal=is_journal(2),
    )
    relay.configure(log_format, level)
    for line in lines_of(lambda: os.read(0, _LINE_BYTES)):
        text = line.decode(errors="backslashreplace").strip()
        if text.startswith(token):
            _, log_format, level = text.split()
            relay.configure(log_format, level)
        elif text:
            relay.log(text)
    relay.end()
    writer.end(_END_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
