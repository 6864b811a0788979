"""The table: each figure beside its yardstick."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from bench.timing import ratio, spread

_SMALL = 0.1  # Below this two decimals say too little.
_COLUMNS = 99  # Of a line in docs/.

Unit = Literal["s", "B"]


@dataclass(frozen=True)
class Row:
    """One comparison. ``ours`` and ``yardstick`` are seconds, or bytes."""

    group: str
    what: str
    ours: float
    against: str
    yardstick: float
    ratio: float
    spread: tuple[float, float]
    rounds: int
    goal: float | None = None
    note: str = ""
    unit: Unit = "s"

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.ratio <= self.goal


def compare(
    group: str,
    what: str,
    ours: Sequence[float],
    against: str,
    yardstick: Sequence[float],
    goal: float | None = None,
    note: str = "",
) -> Row:
    """Return the row of two series that were measured in turns."""
    return Row(
        group,
        what,
        statistics.median(ours),
        against,
        statistics.median(yardstick),
        ratio(ours, yardstick),
        spread(ours, yardstick),
        min(len(ours), len(yardstick)),
        goal,
        note,
    )


def at_best(ours: Sequence[float], yardstick: Sequence[float]) -> str:
    """Return the ratio of the least figures in words: what is left where others use the CPUs."""
    least = f"{milliseconds(min(ours))} / {milliseconds(min(yardstick))} ms"
    return f"least of each {least} = {min(ours) / min(yardstick):.2f}"


def as_json(row: Row) -> dict[str, object]:
    """Return a row for scripts."""
    return {**asdict(row), "met": row.met}


def from_json(described: dict[str, Any]) -> Row:
    """Return the row that `as_json` described."""
    given = {name: value for name, value in described.items() if name != "met"}
    return Row(**{**given, "spread": tuple(given["spread"])})


def table(rows: Sequence[Row]) -> Table:
    """Return the table for people."""
    made = Table(box=box.SIMPLE_HEAD, title="wasmkiln beside its yardsticks", title_justify="left")
    made.add_column("wasmkiln")
    made.add_column("figure", justify="right")
    made.add_column("yardstick")
    made.add_column("figure", justify="right")
    made.add_column("ratio", justify="right")
    made.add_column("least to most", justify="right", style="dim")
    made.add_column("goal", justify="right")
    group = ""
    for row in rows:
        if row.group != group:
            if group:
                made.add_section()
            group = row.group
            made.add_row(f"[bold]{group}[/bold]")
        made.add_row(
            f"  {row.what}",
            figure(row.ours, row.unit),
            row.against,
            figure(row.yardstick, row.unit),
            _ratio(row.ratio),
            _spread(row),
            _goal(row),
        )
    return made


def print_table(rows: Sequence[Row], failed: Mapping[str, str], console: Console) -> None:
    """Print the table, what has to be said about single rows, and what was not measured."""
    console.print(table(rows))
    for row in rows:
        if row.note:
            console.print(f"  [dim]{row.group}, {row.what}: {row.note}[/dim]", highlight=False)
    for name, why in failed.items():
        console.print(f"  failed: {name}: {why}", highlight=False, markup=False)


def in_one_line(row: Row) -> str:
    """Return a row while others are still measured."""
    ours, yardstick = (figure(value, row.unit) for value in (row.ours, row.yardstick))
    return f"{row.group}, {row.what}: {ours}; {row.against}: {yardstick}; ratio {_ratio(row.ratio)}"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for docs/reference/performance.md, as it stands there."""
    lines = [
        "| | wasmkiln | yardstick | | ratio | least to most | goal |",
        "|---|--:|---|--:|--:|--:|---|",
    ]
    for row in rows:
        goal = f"≤ {row.goal:g}, {'met' if row.met else '**missed**'}" if row.goal else ""
        cells = (
            f"{row.group}: {row.what}",
            figure(row.ours, row.unit),
            row.against,
            figure(row.yardstick, row.unit),
            _ratio(row.ratio),
            _spread(row),
            goal,
        )
        lines.append(f"| {' | '.join(cells)} |")
    notes = [wrapped(f"- {row.group}, {row.what}: {row.note}", "  ") for row in rows if row.note]
    return "\n".join([*lines, "", *notes])


def wrapped(text: str, indent: str = "") -> str:
    """Return a text in lines for docs/."""
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def figure(value: float, unit: Unit) -> str:
    """Return a figure with three significant digits or so, and its unit."""
    if unit == "B":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"
    if value >= 10:
        return f"{value:.1f} s"
    return f"{_digits(value * 1e6)} µs" if value < 1e-4 else f"{milliseconds(value)} ms"


def milliseconds(seconds: float) -> str:
    """Return three significant digits or so."""
    return _digits(seconds * 1e3)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < _SMALL else f"{ratio:.2f}"


def _spread(row: Row) -> str:
    return " to ".join(map(_ratio, row.spread))


def _goal(row: Row) -> str:
    if row.goal is None:
        return "[dim]report[/dim]"
    verdict = "[green]met[/green]" if row.met else "[red]missed[/red]"
    return f"≤ {row.goal:g} {verdict}"
