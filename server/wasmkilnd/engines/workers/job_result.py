"""What a job answers, read strictly: it may be a module that speaks, and no longer our code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child.job import MAX_TYPES

OUTCOMES = frozenset(
    {"ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"}
)

Row = tuple[str, str, str, str]

# No number in a result is larger.
MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """One RESULT frame about one module."""

    outcome: str
    """One of ``OUTCOMES``."""
    message: str
    """The engine's own words, where it refused."""
    offset: int | None
    seconds: float
    size_bytes: int
    """Of an artifact that was too large to be sent."""
    imports: tuple[Row, ...]
    """Each as module, name, kind, type."""
    exports: tuple[Row, ...]
    types_truncated: bool


def parse(
    result: Mapping[str, Any], *, longest_s: float = MOST, module_bytes: int = MOST
) -> Answer:
    """Return what ``result`` says. Raises ValueError for what no job of ours says.

    The job ran for ``longest_s``, by the daemon's own clock, on a module of ``module_bytes``.
    """
    outcome = result.get("outcome")
    if not isinstance(outcome, str) or outcome not in OUTCOMES:
        raise ValueError("its answer has no known outcome")
    imports, exports = _rows(result, "imports"), _rows(result, "exports")
    if len(imports) + len(exports) > MAX_TYPES:
        raise ValueError("its answer has more types than a job sends")
    offset = result.get("offset")
    return Answer(
        outcome=outcome,
        message=_text(result.get("message", "")),
        offset=None if offset is None else _count("offset", offset, module_bytes),
        seconds=_seconds(result.get("seconds", 0.0), longest_s),
        size_bytes=_count("size_bytes", result.get("size_bytes", 0), MOST),
        imports=imports,
        exports=exports,
        types_truncated=result.get("types_truncated", False) is True,
    )


def _rows(result: Mapping[str, Any], name: str) -> tuple[Row, ...]:
    rows = result.get(name, [])
    if not isinstance(rows, list):
        raise ValueError(f"its {name} are no list")
    return tuple(map(_row, rows))


def _row(row: object) -> Row:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("a type is not of four parts")
    module, name, kind, of = map(_text, row)
    return module, name, kind, of


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.50}")
    value.encode()  # A lone surrogate, which JSON can say, is a ValueError of its own.
    return value


def _count(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, not 0 to {most}")
    return value


def _seconds(value: object, longest: float) -> float:
    # Compared before it is converted, which fails for an integer of hundreds of digits. What
    # is not a number (NaN) is in no range.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= longest:
        raise ValueError(f"seconds is {_shown(value)}, and the job ran for {longest:g}")
    return float(value)


def _shown(value: object) -> str:
    """Return a value as text, which for an integer of thousands of digits takes a while."""
    huge = isinstance(value, int) and value.bit_length() > 64
    return "a huge number" if huge else f"{value!r:.50}"
