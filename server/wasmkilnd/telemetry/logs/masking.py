"""No secret gets into a log line, and no more of a value than fits into one."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import PurePath
from typing import Final

from wasmkilnd.telemetry.logs.bounds import (
    ITEMS,
    KEY_LENGTH,
    VALUE_LENGTH,
    ExcInfo,
    Room,
    pieces_of_traceback,
    what_was_cut,
)

MASK: Final = "***"

_SECRET_KEY = re.compile(
    r"passw|secret|token|credential|authorization|cookie|(api|private|signing)_?key", re.IGNORECASE
)
_WORD = re.compile(r"\S+")
# Lengths are bounded, or a crafted text would make the search take quadratic time.
_QUERY_CREDENTIALS = re.compile(
    r"([?&;](?:user(?:name)?|[a-z_-]{0,32}(?:passw[a-z]{0,8}|token|secret))=)[^&;#\s\"'<>]*",
    re.IGNORECASE,
)
_MAX_DEPTH = 4
_INTEGER = 1 << 128


class Masker:
    """Makes values fit to be shown: plain, bounded, without secrets. Thread-safe."""

    def __init__(self) -> None:
        # Keys are the few words that the code logs under; the bound is for libraries.
        self._is_secret = lru_cache(maxsize=1024)(_is_secret_key)

    def line(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return a copy of ``values`` that holds texts, numbers, lists and dicts only.

        What a key calls a secret becomes ``***``, and so do credentials in URLs. Of what
        is too long there is the beginning, with a word on what was cut. Raises what the
        ``repr`` of a value raises.
        """
        return self._mapping(values, 0, Room())

    def traceback(self, exc_info: ExcInfo) -> str:
        """Return a traceback in the same way."""
        pieces = pieces_of_traceback(exc_info)
        return "".join(mask_text(kept) + cut for kept, cut in pieces).rstrip("\n")

    def _mapping(self, values: Mapping[str, object], depth: int, room: Room) -> dict[str, object]:
        shown: dict[str, object] = {}
        for key, value in values.items():
            if len(shown) >= ITEMS or room.used_up:
                shown["…"] = f"({len(values):,} keys, {len(shown):,} shown)"
                break
            name = key if len(key) <= KEY_LENGTH else f"{key[:KEY_LENGTH]}…"
            secret = self._is_secret(name) and value
            shown[room.take(name)] = MASK if secret else self._value(value, depth, room)
        return shown

    def _value(self, value: object, depth: int, room: Room) -> object:
        kind = type(value)
        if kind is str:
            return _text(value, room)  # type: ignore[arg-type]
        if kind is bool or value is None:
            return value
        if kind is int and -_INTEGER < value < _INTEGER:  # type: ignore[operator]
            return value
        if kind is float:
            # JSON has no word for the others.
            return value if math.isfinite(value) else str(value)  # type: ignore[arg-type]
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                first = islice(value.items(), ITEMS + 1)
                return self._mapping({str(key): each for key, each in first}, depth + 1, room)
            if isinstance(value, list | tuple | set | frozenset):
                return self._items(value, depth, room)
        if isinstance(value, Enum):
            return self._value(value.value, depth + 1, room)
        if isinstance(value, bytes | bytearray):
            # Not all of it, which would take four times its size for a moment.
            rest = len(value) - VALUE_LENGTH
            note = f"… and {rest:,} bytes more" if rest > 0 else ""
            return _text(repr(value[:VALUE_LENGTH]), room) + note
        if kind is int:
            return _text(hex(value), room)  # type: ignore[arg-type]  # str has a limit
        return _text(str(value) if isinstance(value, str | PurePath) else repr(value), room)

    def _items(self, values: Collection[object], depth: int, room: Room) -> list[object]:
        shown: list[object] = []
        for each in values:
            if len(shown) >= ITEMS or room.used_up:
                shown.append(f"… ({len(values):,} items, {len(shown):,} shown)")
                break
            shown.append(self._value(each, depth + 1, room))
        return shown


def _text(text: str, room: Room) -> str:
    kept = room.take(text)
    return mask_text(kept) + what_was_cut(text, kept)


def mask_text(text: str) -> str:
    """Return ``text`` with ``***`` for the credentials of every URL in it."""
    if "://" not in text:  # nearly every text, and a tenth of a regex
        return text
    if "@" in text:
        text = _WORD.sub(_mask_word, text)
    return _QUERY_CREDENTIALS.sub(rf"\1{MASK}", text)


def _mask_word(match: re.Match[str]) -> str:
    # Up to the last "@": a password may hold "/" and "@" that somebody did not encode.
    word = match[0]
    start, end = word.find("://") + 3, word.rfind("@")
    return f"{word[:start]}{MASK}{word[end:]}" if 3 <= start <= end else word


def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None
