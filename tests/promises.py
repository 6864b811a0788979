"""What the long runs share: promises that are kept or broken, and figures as tables."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """A promise, and what was measured."""

    promise: str
    seen: str
    kept: bool


def broken(checks: Sequence[Check]) -> list[str]:
    """Return the promises that were not kept, each with what was seen."""
    return [f"broken: {check.promise}: {check.seen}" for check in checks if not check.kept]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |"
        for line in (head, ["---"] * len(head), *rows)
    ]


def promises(checks: Sequence[Check]) -> list[str]:
    """Return the lines of the table of promises."""
    rows = [(one.promise, one.seen, "yes" if one.kept else "**no**") for one in checks]
    return table(("promise", "seen", "kept"), rows)


def percentile_s(taken_s: Sequence[float], share: float) -> float:
    """Return within how many seconds this share ended; not a number if there are none."""
    if not taken_s:
        return math.nan
    return sorted(taken_s)[max(0, math.ceil(share * len(taken_s)) - 1)]


def teller(name: str) -> Tell:
    """Return what tells people at a terminal how far a run is."""
    return lambda what: print(f"{time.strftime('%H:%M:%S')} {name}: {what}", file=sys.stderr)


def ended(tell: Tell, figures: str, complaints: Sequence[str]) -> int:
    """Print the figures and what is wrong; return the exit code."""
    print(figures)
    for complaint in complaints:
        tell(complaint)
    return int(bool(complaints))
