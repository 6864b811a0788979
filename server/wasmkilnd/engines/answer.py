"""What a job answers, read strictly: it may be a module that speaks, and no longer our code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child.job import MAX_TYPES

OUTCOMES = frozenset(
    {"ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"}
)

Row = tuple[str, str, str, str]


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


def parse(result: Mapping[str, Any]) -> Answer:
    """Answer what ``result`` says. Raises ValueError for what no job of ours says."""
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
        offset=None if offset is None else _count(offset),
        seconds=_seconds(result.get("seconds", 0.0)),
        size_bytes=_count(result.get("size_bytes", 0)),
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
        raise ValueError("a text is none")
    value.encode()  # A lone surrogate, which JSON can say, is a ValueError of its own.
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a number is none")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError("a time is none")
    seconds = float(value)  # type: ignore[arg-type]
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a time is none")
    return seconds
