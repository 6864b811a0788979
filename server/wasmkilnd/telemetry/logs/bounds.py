"""How long a log line may become, whatever is logged."""

from __future__ import annotations

import json
import re
import traceback
from collections import deque
from types import TracebackType

VALUE_LENGTH = 4096
"""Characters of one value, as they are written in JSON."""
LINE_LENGTH = 16 * 1024
"""Of all values of a line, but for a traceback."""
ITEMS = 64
"""Of a list or a mapping."""
KEY_LENGTH = 128

_ESCAPED = 12
"""Characters that JSON needs for one, at most."""
_PIECE_LENGTH = 1024
_FIRST_PIECES, _LAST_PIECES = 10, 30
_FRAMES = 40
_LAST_WORD = re.compile(r"\S*\Z")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def head(text: str, length: int) -> str:
    """Return the beginning of ``text`` that takes at most ``length`` characters in JSON.

    A URL is left out whole rather than cut, since what would be cut off shows where its
    password ends.
    """
    if len(text) * _ESCAPED <= length:
        return text
    kept = text[:length]
    while (written := len(json.dumps(kept)) - 2) > length:
        kept = kept[: len(kept) * length // written]
    if len(kept) < len(text):
        last = _LAST_WORD.search(kept)
        if last and "://" in last[0]:
            kept = kept[: last.start()]
    return kept


def what_was_cut(text: str, kept: str) -> str:
    """Return what to write after ``kept``; nothing where all of ``text`` was kept."""
    if len(kept) == len(text):
        return ""
    return f"… ({len(text):,} characters, {len(kept):,} shown)"


class Room:
    """What is left of a line while it is put together."""

    def __init__(self) -> None:
        self._left = LINE_LENGTH

    @property
    def used_up(self) -> bool:
        """Whether nothing more fits."""
        return self._left <= 0

    def take(self, text: str) -> str:
        """Return the beginning of ``text`` that has room; less is left then."""
        kept = head(text, max(0, min(VALUE_LENGTH, self._left)))
        self._left -= len(kept)
        return kept


def pieces_of_traceback(exc_info: ExcInfo) -> list[tuple[str, str]]:
    """Return a traceback in pieces: what is kept of each, and a word on what was cut."""
    formatted = traceback.TracebackException(*exc_info, limit=-_FRAMES, compact=True)
    first: list[str] = []
    last: deque[str] = deque(maxlen=_LAST_PIECES)
    count = 0
    for piece in formatted.format():
        count += 1
        (first if count <= _FIRST_PIECES else last).append(piece)
    left_out = count - len(first) - len(last)
    between = [f"  … ({left_out:,} pieces left out)\n"] if left_out else []
    found = []
    for piece in (*first, *between, *last):
        kept = head(piece, _PIECE_LENGTH)
        cut = what_was_cut(piece, kept)
        found.append((kept, f"{cut}\n" if cut else ""))
    return found
