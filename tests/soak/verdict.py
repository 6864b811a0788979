"""Which promises the calls of a soak kept, and all figures as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from wasmkiln.v1 import types_pb2

from tests.promises import Check, percentile_s, promises, table
from tests.soak.chaos import JOB_KILLED, Blow
from tests.soak.ledger import Call

GRACE_S = 3.0
"""How late a call may end after its deadline: the client has work to do on a busy machine."""
LEAST_SHARE = 0.999


def judge(calls: Sequence[Call], blows: Sequence[Blow]) -> list[Check]:
    """Return a check for each promise about calls."""
    wrong = [call.wrong for call in calls if call.wrong]
    outlived = [
        call
        for call in calls
        if call.ended_s > call.deadline_s + GRACE_S
        or (call.outcome == "DEADLINE_EXCEEDED" and call.unaffected and not call.as_expected)
    ]
    late_s = max(call.ended_s - call.deadline_s for call in calls)
    judged = [call for call in calls if call.unaffected and not is_excused(call, blows)]
    well = sum(call.as_expected for call in judged)
    failed = Counter(
        f"{call.kind}: {call.outcome}: {call.said[:200]}" for call in judged if not call.as_expected
    )
    told = [f"{count} of {what}" for what, count in failed.most_common(8)]
    return [
        Check(
            "wrong or unverifiable artifacts: 0",
            "; ".join([str(len(wrong)), *wrong[:3]]),
            not wrong,
        ),
        Check(
            f"calls past their deadline by {GRACE_S:g} s, or cut by one of two minutes: 0",
            f"{[call.kind for call in outlived]}; the latest end: {late_s:+.2f} s",
            not outlived,
        ),
        Check(
            f"unaffected calls that were answered as they should: at least {LEAST_SHARE:.1%}",
            "; ".join([f"{well / len(judged):.3%} of {len(judged):,}", *told]),
            well >= LEAST_SHARE * len(judged),
        ),
    ]


def is_excused(call: Call, blows: Sequence[Blow]) -> bool:
    """Return whether the soak killed the call's job, and the call got exactly that answer."""
    if call.outcome == "COMPILER_CRASHED" and call.metadata.get("signal") == "SIGKILL":
        return any(
            blow.kind == JOB_KILLED
            and blow.life is call.life
            # Who came just after it may have joined those who waited for the job.
            and call.began_s - 1 <= blow.at_s <= call.ended_s
            for blow in blows
        )
    return call.outcome == "MODULE_QUARANTINED" and "SIGKILL" in call.said


def markdown(checks: Sequence[Check], calls: Sequence[Call], blows: Sequence[Blow]) -> str:
    """Return all figures as tables for docs/explanation/reliability.md."""
    by_kind: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_kind[call.kind].append(call)
        if call.unaffected and call.as_expected and call.origin == types_pb2.ORIGIN_MEMORY:
            by_kind["(memory hits of all)"].append(call)
    faults = Counter(blow.kind for blow in blows)
    rows = []
    for kind, some in sorted(by_kind.items()):
        fair = [call.seconds for call in some if call.unaffected]
        p50, p99 = (f"{percentile_s(fair, share) * 1e3:,.0f}" for share in (0.5, 0.99))
        outcomes = Counter(
            call.outcome if call.unaffected else f"{call.outcome} (affected)" for call in some
        )
        told = ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common())
        rows.append((kind, f"{len(some):,}", p50, p99, told))
    return "\n".join(
        [
            *(*promises(checks), ""),
            *(f"Faults: {', '.join(f'{kind} {count}' for kind, count in faults.items())}.", ""),
            *table(("calls", "how many", "p50, ms", "p99, ms", "outcomes"), rows),
        ]
    )
