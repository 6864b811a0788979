"""Parse a job's RESULT frame strictly: a module may have taken the job over and written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child.job import MAX_TYPES
from wasmkilnd.engines.workers.job_protocol import MAX_NUMBER

OUTCOMES = frozenset(
    {"ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"}
)

Row = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The content of one RESULT frame about one module."""

    outcome: str
    """One of ``OUTCOMES``."""
    message: str
    """The engine's own message, where it refused the module."""
    offset: int | None
    seconds: float
    size_bytes: int
    """The size of an artifact that was too large to be sent."""
    imports: tuple[Row, ...]
    """Each as module, name, kind, type."""
    exports: tuple[Row, ...]
    types_truncated: bool


def parse(
    result: Mapping[str, Any], *, longest_s: float = MAX_NUMBER, module_bytes: int = MAX_NUMBER
) -> JobResult:
    """Return the result of a job. Raises ValueError for one that the job's own code never sends.

    The job ran for ``longest_s``, by the daemon's own clock, on a module of ``module_bytes``.
    """
    outcome = result.get("outcome")
    if not isinstance(outcome, str) or outcome not in OUTCOMES:
        raise ValueError("its outcome is missing or unknown")
    imports, exports = _rows(result, "imports"), _rows(result, "exports")
    if len(imports) + len(exports) > MAX_TYPES:
        raise ValueError(f"expected at most {MAX_TYPES} imports and exports")
    offset = result.get("offset")
    return JobResult(
        outcome=outcome,
        message=_text(result.get("message", "")),
        offset=None if offset is None else _count("offset", offset, module_bytes),
        seconds=_seconds(result.get("seconds", 0.0), longest_s),
        size_bytes=_count("size_bytes", result.get("size_bytes", 0), MAX_NUMBER),
        imports=imports,
        exports=exports,
        types_truncated=result.get("types_truncated", False) is True,
    )


def _rows(result: Mapping[str, Any], name: str) -> tuple[Row, ...]:
    rows = result.get(name, [])
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of {name}")
    return tuple(map(_row, rows))


def _row(row: object) -> Row:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("expected an import or export of four parts")
    module, name, kind, of = map(_text, row)
    return module, name, kind, of


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {value!r:.50}")
    value.encode()  # raises ValueError for a lone surrogate, which JSON can express
    return value


def _count(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"expected {name} from 0 to {most}, got {_shown(value)}")
    return value


def _seconds(value: object, longest: float) -> float:
    # Compare before converting: float() fails for an integer of hundreds of digits. NaN is in no
    # range.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= longest:
        raise ValueError(f"expected seconds from 0 to {longest:g}, got {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    """Return a value as text. To print an integer of thousands of digits would take a while."""
    huge = isinstance(value, int) and value.bit_length() > 64
    return "a huge number" if huge else f"{value!r:.50}"
