"""What may go into a log line: no secret, and a bounded number of characters."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections import deque
from collections.abc import Collection, Mapping
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import PurePath
from types import TracebackType
from typing import Final

MASK: Final = "***"

_VALUE_LENGTH = 4096  # characters of one value, as JSON writes them
_LINE_LENGTH = 16 * 1024  # of all values of a line, its traceback aside
_ITEMS = 64  # of a list or a mapping
_KEY_LENGTH = 128
_MAX_DEPTH = 4
_INTEGER = 1 << 128
# JSON writes one character as twelve at most.
_ESCAPED = 12
# A traceback is a sequence of pieces: a frame, a message, or a line between two exceptions.
_FRAMES = 40
_PIECE_LENGTH = 1024
_FIRST_PIECES, _LAST_PIECES = 10, 30

_SECRET_KEY = re.compile(
    r"passw|secret|token|credential|authorization|cookie|(api|private|signing)_?key", re.IGNORECASE
)
_WORD = re.compile(r"\S+")
_LAST_WORD = re.compile(r"\S*\Z")
# Lengths are bounded, or a crafted text would make the search take quadratic time.
_QUERY_CREDENTIALS = re.compile(
    r"([?&;](?:user(?:name)?|[a-z_-]{0,32}(?:passw[a-z]{0,8}|token|secret))=)[^&;#\s\"'<>]*",
    re.IGNORECASE,
)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Masker:
    """Copies values into a form that may be logged: plain, bounded, masked. Thread-safe."""

    def __init__(self) -> None:
        # The daemon's code logs under a few keys; the bound is for libraries.
        self._is_secret = lru_cache(maxsize=1024)(_is_secret_key)

    def line(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return a copy of ``values`` that holds texts, numbers, lists and dicts only.

        A value under a key that names a secret becomes ``***``, and so do credentials in URLs.
        A value that is too long is cut, with a note on how much is missing. Raises what the
        ``repr`` of a value raises.
        """
        plain = self._plain(values)
        return self._mapping(values, 0, _Room()) if plain is None else plain

    def traceback(self, exc_info: ExcInfo) -> str:
        """Return a traceback, masked and cut in the same way: its first and last pieces."""
        formatted = traceback.TracebackException(*exc_info, limit=-_FRAMES, compact=True)
        first: list[str] = []
        last: deque[str] = deque(maxlen=_LAST_PIECES)
        count = 0
        for piece in formatted.format():
            count += 1
            (first if count <= _FIRST_PIECES else last).append(piece)
        left_out = count - len(first) - len(last)
        between = [f"  … ({left_out:,} pieces left out)\n"] if left_out else []
        pieces = (_masked_piece(piece) for piece in (*first, *between, *last))
        return "".join(pieces).rstrip("\n")

    def _plain(self, values: Mapping[str, object]) -> dict[str, object] | None:
        """Return the copy of a line that no limit cuts, as nearly every one is; None for others.

        This is a third of the work, and each call writes such a line.
        """
        left = _LINE_LENGTH // _ESCAPED
        shown: dict[str, object] = {}
        for key, value in values.items():
            left -= len(key)
            if left < 0 or len(key) > _KEY_LENGTH or len(shown) >= _ITEMS:
                return None
            kind = type(value)
            if kind is str:
                length = len(value)  # type: ignore[arg-type]
                if length > _VALUE_LENGTH // _ESCAPED or "://" in value:  # type: ignore[operator]
                    return None
                left -= length
            elif kind is float:
                if not math.isfinite(value):  # type: ignore[arg-type]
                    return None
            elif kind is int:
                if not -_INTEGER < value < _INTEGER:  # type: ignore[operator]
                    return None
            elif kind is not bool and value is not None:
                return None
            shown[key] = MASK if self._is_secret(key) and value else value
        return None if left < 0 else shown

    def _mapping(self, values: Mapping[str, object], depth: int, room: _Room) -> dict[str, object]:
        shown: dict[str, object] = {}
        for key, value in values.items():
            if len(shown) >= _ITEMS or room.used_up:
                shown["…"] = f"({len(values):,} keys, {len(shown):,} shown)"
                break
            name = key if len(key) <= _KEY_LENGTH else f"{key[:_KEY_LENGTH]}…"
            secret = self._is_secret(name) and value
            shown[room.take(name)] = MASK if secret else self._value(value, depth, room)
        return shown

    def _value(self, value: object, depth: int, room: _Room) -> object:
        kind = type(value)
        if kind is str:
            return _masked(value, room)  # type: ignore[arg-type]
        if kind is bool or value is None:
            return value
        if kind is int and -_INTEGER < value < _INTEGER:  # type: ignore[operator]
            return value
        if kind is float:
            # JSON has no word for infinity and NaN.
            return value if math.isfinite(value) else str(value)  # type: ignore[arg-type]
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                first = islice(value.items(), _ITEMS + 1)
                return self._mapping({str(key): each for key, each in first}, depth + 1, room)
            if isinstance(value, list | tuple | set | frozenset):
                return self._items(value, depth, room)
        if isinstance(value, Enum):
            return self._value(value.value, depth + 1, room)
        if isinstance(value, bytes | bytearray):
            # Only its beginning, since repr takes four times the size for a moment.
            rest = len(value) - _VALUE_LENGTH
            note = f"… and {rest:,} bytes more" if rest > 0 else ""
            return _masked(repr(value[:_VALUE_LENGTH]), room) + note
        if kind is int:
            return _masked(hex(value), room)  # type: ignore[arg-type]  # str has a limit
        return _masked(str(value) if isinstance(value, str | PurePath) else repr(value), room)

    def _items(self, values: Collection[object], depth: int, room: _Room) -> list[object]:
        shown: list[object] = []
        for each in values:
            if len(shown) >= _ITEMS or room.used_up:
                shown.append(f"… ({len(values):,} items, {len(shown):,} shown)")
                break
            shown.append(self._value(each, depth + 1, room))
        return shown


class _Room:
    """The characters that a line has left while the masker puts it together."""

    def __init__(self) -> None:
        self._left = _LINE_LENGTH

    @property
    def used_up(self) -> bool:
        """Whether nothing more fits."""
        return self._left <= 0

    def take(self, text: str) -> str:
        """Return the beginning of ``text`` that fits, and take its length off the room."""
        kept = _beginning(text, max(0, min(_VALUE_LENGTH, self._left)))
        self._left -= len(kept)
        return kept


def mask_text(text: str) -> str:
    """Return ``text`` with ``***`` for the credentials of every URL in it."""
    if "://" not in text:  # true of nearly every text, and ten times faster than a regex
        return text
    if "@" in text:
        text = _WORD.sub(_mask_word, text)
    return _QUERY_CREDENTIALS.sub(rf"\1{MASK}", text)


def _mask_word(match: re.Match[str]) -> str:
    # Up to the last "@": a password may hold "/" and "@" that its author did not encode.
    word = match[0]
    start, end = word.find("://") + 3, word.rfind("@")
    return f"{word[:start]}{MASK}{word[end:]}" if 3 <= start <= end else word


def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _masked(text: str, room: _Room) -> str:
    kept = room.take(text)
    return mask_text(kept) + _note_on_cut(text, kept)


def _masked_piece(piece: str) -> str:
    kept = _beginning(piece, _PIECE_LENGTH)
    note = _note_on_cut(piece, kept)
    return mask_text(kept) + (f"{note}\n" if note else "")


def _beginning(text: str, length: int) -> str:
    """Return the beginning of ``text`` that takes at most ``length`` characters in JSON.

    A cut URL would no longer show where its password ends, so a URL at the cut is left out whole.
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


def _note_on_cut(text: str, kept: str) -> str:
    if len(kept) == len(text):
        return ""
    return f"… ({len(text):,} characters, {len(kept):,} shown)"
