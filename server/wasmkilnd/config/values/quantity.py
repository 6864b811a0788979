"""Sizes and durations as people write them: ``256MiB``, ``500ms``, ``7d``."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SECONDS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}


def parse_bytes(value: object) -> int:
    """Return a size in bytes from an integer or a text such as ``64MiB``.

    Raises ValueError with what is allowed.
    """
    number = _number(value, _BYTES, "b")
    if number is None or number.denominator != 1:
        raise ValueError(
            f"{_short(value)} is not a size: write bytes as in 268435456,"
            " or a suffix as in 256MiB or 1GB"
        )
    return int(number)


def parse_seconds(value: object) -> float:
    """Return a duration in seconds from a number or a text such as ``500ms``.

    Raises ValueError with what is allowed.
    """
    number = _number(value, _SECONDS, "s")
    if number is None:
        raise ValueError(
            f"{_short(value)} is not a duration: write seconds as in 30 or 0.5,"
            " or a suffix as in 500ms, 5m or 7d"
        )
    return float(number)


def parse_count(value: object) -> int:
    """Return a whole number from an integer or its digits.

    Raises ValueError with what is allowed.
    """
    number = _number(value, {}, "")
    if number is None or number.denominator != 1:
        raise ValueError(f"{_short(value)} is not a whole number: write digits only")
    return int(number)


def parse_ratio(value: object) -> float:
    """Return a number from 0 to 1, or from a text such as ``0.25``.

    Raises ValueError with what is allowed.
    """
    number = _number(value, {}, "")
    if number is None or number > 1:
        raise ValueError(f"{_short(value)} is not a part: write a number from 0 to 1")
    return float(number)


def write_bytes(size_bytes: int) -> str | int:
    """Return a size in its largest binary unit if that is exact, else the plain number."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return size_bytes


def write_seconds(duration_s: float) -> str | int | float:
    """Return a duration in days, hours or minutes if that is exact, else in plain seconds."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if duration_s and duration_s % factor == 0:
            return f"{int(duration_s // factor)}{unit}"
    return int(duration_s) if duration_s == int(duration_s) else duration_s


def written(field: str, value: object) -> object:
    """Return a setting's value as a person writes it: the field's name says the unit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if field.endswith("_bytes"):
            return write_bytes(int(value))
        if field.endswith("_s"):
            return write_seconds(value)
    return value


def _number(
    value: object, units: dict[str, int] | dict[str, Fraction], plain: str
) -> Fraction | None:
    # bool is an int to Python, but `workers = true` is a mistake.
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return Fraction(value)
        except (ValueError, OverflowError):  # not a number, or infinite
            return None
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    # "m" means minutes only, so the case of a duration's unit counts; that of a size does not.
    unit = match[2] if plain == "s" else match[2].lower()
    if unit in ("", plain):
        return Fraction(match[1])
    factor = units.get(unit)
    return None if factor is None else Fraction(match[1]) * factor


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
