"""Rows: one figure beside its yardstick, measured in turns, and the table of them."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import grpc

from bench.lab import ROOT, BenchError, describe_machine

PAGE = ROOT / "docs" / "reference" / "performance.md"

_LEAST_ROUNDS = 3
_BLOCKS = 6  # The spread of a ratio is that of this many parts of a series.
_COLUMNS = 99  # Of a line in docs/.
_SENTENCE_CHARACTERS = 300
_HEADINGS = ("", "wasmkiln", "yardstick", "", "ratio", "least to most", "goal")
_ALIGNED = ("---", "--:", "---", "--:", "--:", "--:", "---")
_HEAD = """# Performance figures

Each figure beside its yardstick: [where the time goes, and how it is
measured](../explanation/performance.md).

![Each ratio with its goal, on a logarithmic axis](performance.svg)
"""

Unit = Literal["s", "B"]
Action = Callable[[], object]
"""Something to time, unless it returns a figure of its own: a float."""


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
    goal: float | None = None
    note: str = ""
    unit: Unit = "s"

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.ratio <= self.goal

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as texts of a table."""
        goal = f"≤ {self.goal:g}, {'met' if self.met else '**missed**'}" if self.goal else ""
        return (
            f"{self.group}: {self.what}",
            figure(self.ours, self.unit),
            self.against,
            figure(self.yardstick, self.unit),
            _ratio(self.ratio),
            " to ".join(map(_ratio, self.spread)),
            goal,
        )


def in_turns(
    actions: Mapping[str, Action], rounds: int, warm_up: int = 0, budget_s: float = math.inf
) -> dict[str, list[float]]:
    """Measure every action once a round, in seconds, so that others disturb all alike.

    Each round has a new order: with a fixed one an action would always find the caches that the
    same other left. Past ``budget_s`` seconds the rest of the rounds is left out, but for the
    least that a median can be taken of.
    """
    began = time.monotonic()
    series: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(-warm_up, rounds):
        if turn >= _LEAST_ROUNDS and time.monotonic() - began > budget_s:
            break
        for name in random.sample(list(actions), len(actions)):
            started = time.perf_counter()
            own = actions[name]()
            seconds = time.perf_counter() - started
            if turn >= 0:
                series[name].append(own if isinstance(own, float) else seconds)
    return series


def compare(
    group: str,
    what: str,
    ours: Sequence[float],
    against: str,
    yardstick: Sequence[float],
    goal: float | None = None,
    note: str = "",
    by: Callable[[Sequence[float]], float] = statistics.median,
) -> Row:
    """Return the row of two series that were measured in turns, by their medians or otherwise."""
    count = min(len(ours), len(yardstick))
    size = max(1, count // _BLOCKS)
    parts = [slice(at, at + size) for at in range(0, count - size + 1, size)]
    ratios = [by(ours[part]) / by(yardstick[part]) for part in parts]
    mine, other = by(ours), by(yardstick)
    spread = (min(ratios), max(ratios))
    return Row(group, what, mine, against, other, mine / other, spread, goal, note)


def p99(series: Sequence[float]) -> float:
    """Return the 99th percentile by nearest rank."""
    return sorted(series)[-(-99 * len(series) // 100) - 1]


def figure(value: float, unit: Unit = "s") -> str:
    """Return a figure with three significant digits or so, and its unit."""
    if unit == "B":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"
    if value >= 10:
        return f"{value:.1f} s"
    return f"{_digits(value * 1e6)} µs" if value < 1e-4 else f"{_digits(value * 1e3)} ms"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.2f}"


@dataclass
class Run:
    """What one run has measured so far, and what could not be measured."""

    version: str = field(default_factory=lambda: version("wasmkiln"))
    date: str = field(default_factory=lambda: time.strftime("%d %B %Y").lstrip("0"))
    machine: str = field(default_factory=describe_machine)
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Why, for each measurement that did not come to its end."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each measurement took."""

    def measure(self, name: str, rows: Iterable[Row], file: Path) -> None:
        """Print each row when it comes, and write the run to ``file``; keep why it failed.

        The traceback of a failure goes into a file beside ``file``.
        """
        print(f"{name}:", flush=True)
        began = time.monotonic()
        try:
            for row in rows:
                self.rows.append(row)
                what, ours, against, yardstick, ratio, *_ = row.cells
                print(f"  {what}: {ours}; {against}: {yardstick}; ratio {ratio}", flush=True)
                self.write(file)
        except Exception as failure:
            trace = file.with_name(f"{name}.traceback")
            trace.write_text(traceback.format_exc())
            self.failed[name] = _sentence(failure)
            print(f"bench: cannot measure {name}: {self.failed[name]} ({trace})", file=sys.stderr)
        self.seconds[name] = round(time.monotonic() - began, 1)
        self.write(file)

    def write(self, file: Path) -> None:
        """Write all there is, so that a reader never sees a part of it."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1))
        new.replace(file)

    def __str__(self) -> str:
        """Return in one sentence what was measured, when and where."""
        return (
            f"wasmkiln {self.version}, {self.date}: one run of {sum(self.seconds.values()):,.0f} s"
            f" on {self.machine}."
        )

    def page(self) -> str:
        """Return docs/reference/performance.md."""
        lines = [_HEADINGS, _ALIGNED, *(row.cells for row in self.rows)]
        table = [f"| {' | '.join(cells)} |" for cells in lines]
        notes = [_wrapped(note, "  ") for note in self._notes()]
        return "\n".join([_HEAD, _wrapped(str(self)), "", *table, "", *notes, ""])

    def _notes(self) -> list[str]:
        rows = [f"- {row.group}, {row.what}: {row.note}" for row in self.rows if row.note]
        return rows + [f"- Not measured: {name}: {why}" for name, why in self.failed.items()]


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sentence(failure: Exception) -> str:
    """Return why something failed, in one line."""
    if isinstance(failure, grpc.RpcError):
        call: Any = failure  # Its text is a paragraph.
        return f"{call.code().name}: {call.details()}"
    words = textwrap.shorten(str(failure), _SENTENCE_CHARACTERS)
    return words if isinstance(failure, BenchError) else f"{type(failure).__name__}: {words}"
