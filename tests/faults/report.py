"""The effect of the faults on callers, in figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.callers import Call
from tests.faults.site import TIMEOUT_S
from tests.faults.suite import Injection, Outcome, during

_MOST = 0.8


@dataclass(frozen=True)
class Row:
    """All injections of one kind."""

    fault: str
    injected: int
    calls: int
    wrong: int
    failed: int
    longest_added_s: float
    waited_out_s: float
    """The median wait of the calls that waited for most of a time-out or longer; else 0."""
    recovery_s: float
    """The median time from the end of the cause to recovery."""
    longest_recovery_s: float


@dataclass(frozen=True)
class Report:
    """The report of a run."""

    rows: list[Row]
    injected: int
    calls: int
    wrong: list[str]
    failed: list[str]
    longest_added_s: float
    longest_recovery_s: float
    quiet_calls: int
    quiet_longest_s: float
    """How long the longest call without faults took, apart from compiling."""
    rejected: Counter[str]
    errors: list[str]
    """The errors that the daemons logged."""


def report(outcomes: Sequence[Outcome]) -> Report:
    """Return the figures of a run."""
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    calls = [call for outcome in outcomes for call in outcome.calls]
    quiet = [call for outcome in outcomes for call in outcome.quiet]
    return Report(
        rows=rows,
        injected=sum(row.injected for row in rows),
        calls=len(calls),
        wrong=[call.wrong for call in calls if call.wrong],
        failed=[call.failure for call in calls if call.failure],
        longest_added_s=max(row.longest_added_s for row in rows),
        longest_recovery_s=max(row.longest_recovery_s for row in rows),
        quiet_calls=len(quiet),
        quiet_longest_s=max(call.waited_s for call in quiet),
        rejected=sum((outcome.rejected for outcome in outcomes), Counter()),
        errors=[error for outcome in outcomes for error in outcome.errors],
    )


def _rows(outcome: Outcome) -> list[Row]:
    usual_s = statistics.median(call.waited_s for call in outcome.quiet)
    by_fault: dict[str, list[Injection]] = {}
    for injection in outcome.injections:
        by_fault.setdefault(injection.fault, []).append(injection)
    return [_row(fault, some, outcome.calls, usual_s) for fault, some in by_fault.items()]


def _row(fault: str, injections: list[Injection], calls: list[Call], usual_s: float) -> Row:
    met = [call for injection in injections for call in during(calls, injection)]
    waited_out = [call.waited_s for call in met if call.waited_s > _MOST * TIMEOUT_S]
    recoveries = [injection.recovered_s - injection.healed_s for injection in injections]
    return Row(
        fault=fault,
        injected=len(injections),
        calls=len(met),
        wrong=sum(bool(call.wrong) for call in met),
        failed=sum(bool(call.failure) for call in met),
        longest_added_s=max((call.waited_s for call in met), default=usual_s) - usual_s,
        waited_out_s=statistics.median(waited_out) if waited_out else 0.0,
        recovery_s=statistics.median(recoveries),
        longest_recovery_s=max(recoveries),
    )


def markdown(made: Report) -> str:
    """Return the table for docs/explanation/redis.md."""
    lines = [
        "| fault | injected | calls meanwhile | wrong artifacts | failed calls"
        " | longest added wait, ms | recovered after, ms | at the latest, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.fault} | {row.injected} | {row.calls:,} | {row.wrong} | {row.failed}"
        f" | {row.longest_added_s * 1e3:,.0f} | {row.recovery_s * 1e3:,.0f}"
        f" | {row.longest_recovery_s * 1e3:,.0f} |"
        for row in made.rows
    ]
    lines.append(
        f"| **all** | **{made.injected}** | **{made.calls:,}** | **{len(made.wrong)}**"
        f" | **{len(made.failed)}** | **{made.longest_added_s * 1e3:,.0f}** |"
        f" | **{made.longest_recovery_s * 1e3:,.0f}** |"
    )
    causes = ", ".join(
        f"{cause} {count}" for cause, count in sorted(made.rejected.items()) if count
    )
    lines += [
        "",
        f"One configured time-out is {TIMEOUT_S * 1e3:.0f} ms. Without faults, the longest of"
        f" {made.quiet_calls:,} calls took {made.quiet_longest_s * 1e3:,.0f} ms"
        f" apart from compiling. Rejected values, by cause: {causes or 'none'}.",
    ]
    return "\n".join(lines)
