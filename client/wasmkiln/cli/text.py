"""What people read: tables, sentences and numbers, whatever a daemon sends, and progress.

What a daemon, an engine or a file calls itself is shown as one printable line and never steers
the terminal. A table shows 1,000 rows at most. wasmkilnd's commands borrow `size`, `elapsed` and
`one_line`.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from wasmkiln._untrusted import one_line as one_line
from wasmkiln._untrusted import quoted as quoted
from wasmkiln._untrusted import seconds as seconds

MAX_ROWS = 1_000
_MAX_CELL = 1_000
_NUMBER = re.compile(r"-|[\d,]+(\.\d+)?%?( (B|[KMG]iB|ms|s|min|h \d+ min))?")


class Printable(str):
    """A text that may be printed as it is."""

    __slots__ = ()


def table(rows: Sequence[Any], columns: str) -> Printable:
    """Return a table of documents as --json has them; "" without rows.

    `columns` names fields: "engine.id:made_by" is the field `id` of `engine` under "made by". A
    field of a list's elements has a line for each.
    """
    fields = [column.partition(":")[0] for column in columns.split()]
    heads = [re.split("[:.]", column)[-1].replace("_", " ") for column in columns.split()]
    found = [
        [one_line(text, _MAX_CELL) for text in line]
        for row in rows[:MAX_ROWS]
        for line in zip_longest(*(_cell(row, field) for field in fields), fillvalue="")
    ]
    left_out = len(rows) + max(0, len(found) - MAX_ROWS) - len(rows[:MAX_ROWS])
    del found[MAX_ROWS:]
    if not found:
        return Printable()
    columns_of_text = []
    for head, *cells in zip(heads, *found, strict=True):
        width = max(map(len, (head, *cells)))
        is_number = all(_NUMBER.fullmatch(cell) for cell in cells)
        columns_of_text.append([f"{c:{'>' if is_number else '<'}{width}}" for c in (head, *cells)])
    lines = ["   ".join(line) for line in zip(*columns_of_text, strict=True)]
    lines.insert(1, "─" * len(lines[0]))
    lines = [f" {line}".rstrip() for line in lines]
    if left_out:
        lines.append(f"… {left_out:,} more: --json shows all")
    return Printable("\n".join(["", *lines, ""]))


def _cell(value: Any, field: str) -> list[str]:
    """Return the lines of a cell: one, or one for each element of a list on the way."""
    name, _, rest = field.partition(".")
    if isinstance(value, list):
        return [", ".join(_cell(each, field)) for each in value[:MAX_ROWS]]
    found = value[name] if value else None
    return _cell(found, rest) if rest else [_shown(name, found)]


def _shown(name: str, value: Any) -> str:
    """Return a field as people read it, by its name."""
    if isinstance(value, list):
        return ", ".join(_shown(name, each) for each in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):  # of an enum, or any
        prefix = f"{name.rstrip('s').upper()}_"
        known = value.startswith(prefix)
        return value.removeprefix(prefix).replace("_", " ").lower() if known else value or "-"
    if value is None or (not value and name.endswith(("bytes", "_s"))):
        return "-"
    if name.endswith("bytes"):
        return size(value)
    if name.endswith("ratio"):
        return f"{value:.1%}"
    return elapsed(value) if name.endswith("_s") else f"{value:,}"


def size(count_bytes: int) -> str:
    """Return a number of bytes as, for example, "2.5 MiB"."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    power = min(3, (count_bytes.bit_length() - 1) // 10)
    return f"{count_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def elapsed(duration_s: float) -> str:
    """Return seconds as, for example, "0.42 ms", "12 ms", "1.30 s", "2 h 5 min"; 0 as "-"."""
    if duration_s == 0:
        return "-"
    if duration_s < 1:
        return f"{duration_s * 1e3:.{2 if duration_s < 0.010 else 0}f} ms"
    if duration_s < 120:
        return f"{duration_s:.2f} s"
    hours, minutes = divmod(round(duration_s / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Progress:
    """What is going on, on stderr: one line that changes on a terminal.

    Elsewhere there is a line for each thing that `count` counts. Called by many threads.
    """

    def __init__(self, text: str = "", total: int = 0) -> None:
        self._text, self._total, self._done = text, total, 0
        self._lock = threading.Lock()
        self._on_terminal = sys.stderr.isatty()
        self._ended = False

    def show(self, text: str) -> None:
        """Show what is going on, where that is a terminal."""
        if self._on_terminal and not self._ended:
            width = max(20, shutil.get_terminal_size().columns) - 1
            print(f"\r\x1b[K{one_line(text)[:width]}", end="", file=sys.stderr, flush=True)

    def of(self, source: str, now: Any) -> None:
        """Show how far a call about this source is: the `on_progress` of a client."""
        done = f": {size(now.done_bytes)} of {size(now.total_bytes)}" if now.total_bytes else ""
        self.show(f"{now.phase.value} {source}{done}")

    def count(self, sentence: str) -> None:
        """Count one more, of which the sentence says what became."""
        with self._lock:
            self._done += 1
            self.show(f"{self._text} {self._done} of {self._total} {sentence}")
            if sentence and not (self._on_terminal or self._ended):
                print(one_line(f"{sentence} ({self._done} of {self._total})"), file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        # What ends after an interrupt is no news.
        with self._lock:
            self.show("")
            self._ended = True
