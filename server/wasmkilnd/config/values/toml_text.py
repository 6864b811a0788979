"""TOML that a person wrote: what is wrong with it becomes one sentence, whatever it is."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of ``text``. Raises ValueError with a sentence for people."""
    try:
        content = tomllib.loads(text)
        if _holds_a_large_number(content):
            raise ValueError
    except (tomllib.TOMLDecodeError, RecursionError) as mistake:
        raise ValueError(f"not valid TOML: {mistake}") from None
    except ValueError:  # the library's own, of thousands of digits, gives advice on Python
        raise ValueError("not valid TOML: a number does not fit into 64 bits") from None
    return content


def _holds_a_large_number(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_a_large_number, value.values()))
    if isinstance(value, list):
        return any(map(_holds_a_large_number, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63
