"""The verdict as a table for docs/explanation/reliability.md."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.soak.ledger import Call
from tests.soak.verdict import Check, Verdict, hits, percentile


def markdown(verdict: Verdict) -> str:
    """Return all figures."""
    figures = verdict.figures
    calls = figures.calls
    at_hits = hits(calls)
    blows = Counter(blow.kind for blow in figures.blows)
    affected = sum(not call.unaffected for call in calls)
    return "\n".join(
        [
            "| promise | seen | kept |",
            "|---|---|---|",
            *map(_row, verdict.checks),
            "",
            f"{len(calls):,} calls in {figures.plan.seconds:g} s, seed {figures.plan.seed};"
            f" {affected:,} of them were affected by the end of their daemon,"
            f" {len(verdict.excused)} lost their job and got that answer."
            f" Memory hits meanwhile: {len(at_hits):,},"
            f" p50 {percentile(at_hits, 0.5) * 1e3:.1f} ms,"
            f" p99 {percentile(at_hits, 0.99) * 1e3:.1f} ms.",
            "",
            "Faults: "
            + ", ".join(f"{kind} {count}" for kind, count in sorted(blows.items()))
            + ".",
            "",
            "| calls | how many | p50, ms | p99, ms | outcomes |",
            "|---|--:|--:|--:|---|",
            *_rows(calls),
        ]
    )


def _row(check: Check) -> str:
    seen = check.seen.replace("|", "/").replace("\n", " ")
    return f"| {check.promise} | {seen} | {'yes' if check.kept else '**no**'} |"


def _rows(calls: list[Call]) -> list[str]:
    by_kind: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_kind[call.kind].append(call)
    rows = []
    for kind, some in sorted(by_kind.items()):
        outcomes = Counter(
            call.outcome if call.unaffected else f"{call.outcome} (affected)" for call in some
        )
        fair = [call for call in some if call.unaffected]
        told = ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common())
        rows.append(
            f"| {kind} | {len(some):,} | {percentile(fair, 0.5) * 1e3:,.0f}"
            f" | {percentile(fair, 0.99) * 1e3:,.0f} | {told} |"
        )
    return rows
