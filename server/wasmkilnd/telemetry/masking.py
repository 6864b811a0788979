"""No secret gets into a log line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Final

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


class Masker:
    """Makes values fit to be shown: plain, without secrets. Thread-safe."""

    def __init__(self) -> None:
        # Keys are the few words that the code logs under; the bound is for libraries.
        self._is_secret = lru_cache(maxsize=1024)(_is_secret_key)

    def mapping(self, values: Mapping[str, object], depth: int = 0) -> dict[str, object]:
        """Answer a copy of ``values`` that holds texts, numbers, lists and dicts only.

        What a key calls a secret becomes ``***``, and so do credentials in URLs.
        Raises what the ``repr`` of a value raises.
        """
        return {
            key: MASK if self._is_secret(key) and value else self._value(value, depth)
            for key, value in values.items()
        }

    def _value(self, value: object, depth: int) -> object:
        kind = type(value)
        if kind is str:
            return mask_text(value)  # type: ignore[arg-type]
        if kind is int or kind is bool or value is None:
            return value
        if kind is float:
            # JSON has no word for the others.
            return value if math.isfinite(value) else str(value)  # type: ignore[arg-type]
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                named = {str(key): each for key, each in value.items()}
                return self.mapping(named, depth + 1)
            if isinstance(value, list | tuple | set | frozenset):
                return [self._value(each, depth + 1) for each in value]
        if isinstance(value, Enum):
            return self._value(value.value, depth + 1)
        return mask_text(str(value) if isinstance(value, str | PurePath) else repr(value))


def mask_text(text: str) -> str:
    """Answer ``text`` with ``***`` for the credentials of every URL in it."""
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
