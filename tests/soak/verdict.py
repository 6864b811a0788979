"""Decide by the figures of a soak which promises were kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wasmkiln.v1 import types_pb2

from tests.soak import chaos
from tests.soak.ledger import Call
from tests.soak.run import Figures

GRACE_S = 1.0
"""How late a call may end after its deadline: the client has work to do on a busy machine."""
LEAST_SHARE = 0.999
# What daemons keep connected to Redis, once many calls at once have needed it.
_REDIS_CONNECTIONS = 32
# Beside what allocators keep for the next time, nothing may grow.
_MEMORY_GROWTH, _MEMORY_SLACK_BYTES = 1.25, 32 * 2**20


@dataclass(frozen=True)
class Check:
    """A promise, and what was measured."""

    promise: str
    seen: str
    kept: bool


@dataclass(frozen=True)
class Verdict:
    """All checks of a soak."""

    figures: Figures
    checks: list[Check]
    excused: list[Call]
    """Calls whose job was killed, or whose module was condemned for jobs that were: they were
    told so, as is documented."""

    @property
    def broken(self) -> list[Check]:
        """The promises that were not kept."""
        return [check for check in self.checks if not check.kept]


def judge(figures: Figures) -> Verdict:
    """Return a check for each promise."""
    excused = [call for call in figures.calls if _is_excused(call, figures)]
    judged = [call for call in figures.calls if call.unaffected and call not in excused]
    checks = [
        _answers_are_true(figures.calls),
        _calls_end(figures.calls),
        _share(judged),
        *_nothing_is_left(figures),
        _memory_is_bounded(figures),
        Check(
            "all that was planned happened",
            ", ".join(figures.missing) or "yes",
            not figures.missing,
        ),
    ]
    return Verdict(figures, checks, excused)


def hits(calls: Sequence[Call]) -> list[Call]:
    """Return the unaffected calls that were answered from memory."""
    return [
        call
        for call in calls
        if call.unaffected and call.as_expected and call.origin == types_pb2.ORIGIN_MEMORY
    ]


def percentile(calls: Sequence[Call], share: float) -> float:
    """Return within how many seconds this share of the calls ended."""
    taken = sorted(call.seconds for call in calls)
    return taken[max(0, math.ceil(share * len(taken)) - 1)] if taken else math.nan


def _is_excused(call: Call, figures: Figures) -> bool:
    """Return whether the soak killed the call's job, and the call got exactly that answer."""
    if call.outcome == "COMPILER_CRASHED" and call.metadata.get("signal") == "SIGKILL":
        return any(
            blow.kind == chaos.JOB_KILLED
            and blow.life is call.life
            # Who came just after it may have joined those who waited for the job.
            and call.began_s - 1 <= blow.at_s <= call.ended_s
            for blow in figures.blows
        )
    return call.outcome == "MODULE_QUARANTINED" and "SIGKILL" in call.said


def _answers_are_true(calls: Sequence[Call]) -> Check:
    wrong = [call.wrong for call in calls if call.wrong]
    return Check(
        "wrong or unverifiable artifacts: 0",
        "; ".join([str(len(wrong)), *wrong[:3]]),
        not wrong,
    )


def _calls_end(calls: Sequence[Call]) -> Check:
    outlived = [call for call in calls if call.ended_s > call.deadline_s + GRACE_S]
    late_s = max(call.ended_s - call.deadline_s for call in calls)
    return Check(
        f"calls that outlived their deadline by more than {GRACE_S:g} s: 0",
        f"{len(outlived)}; the latest end was {late_s:+.2f} s from the deadline",
        not outlived,
    )


def _share(judged: Sequence[Call]) -> Check:
    well = sum(call.as_expected for call in judged)
    failed = Counter(
        f"{call.kind}: {call.outcome}: {call.said[:200]}" for call in judged if not call.as_expected
    )
    return Check(
        f"unaffected calls that were answered as they should: at least {LEAST_SHARE:.1%}",
        "; ".join(
            [
                f"{well / len(judged):.3%} of {len(judged):,}",
                *(f"{count} of {what}" for what, count in failed.most_common(8)),
            ]
        ),
        well >= LEAST_SHARE * len(judged),
    )


def _nothing_is_left(figures: Figures) -> list[Check]:
    pairs = list(zip(figures.before, figures.after, strict=True))
    return [
        Check(
            "each daemon settles",
            "; ".join(figures.unsettled) or "yes",
            not figures.unsettled,
        ),
        Check(
            "processes of each daemon: as before",
            ", ".join(f"{a.processes} (before {b.processes})" for b, a in pairs),
            all(a.processes == b.processes for b, a in pairs),
        ),
        Check(
            "descriptors of each daemon: as before, but for idle connections to Redis",
            ", ".join(f"{a.descriptors} (before {b.descriptors})" for b, a in pairs),
            all(a.descriptors <= b.descriptors + _REDIS_CONNECTIONS for b, a in pairs),
        ),
        Check(
            "processes left by daemons that ended: 0",
            str(figures.left_behind),
            not figures.left_behind,
        ),
        Check("leases left in Redis: 0", str(figures.leases), not figures.leases),
        Check(
            "exit codes after SIGTERM: 0",
            ", ".join(map(str, figures.exit_codes)),
            not any(figures.exit_codes),
        ),
    ]


def _memory_is_bounded(figures: Figures) -> Check:
    """Check the memory of daemons that lived long enough to show a leak."""
    pairs = [
        (f.memory_bytes, last.warm_bytes)
        for f, last in zip(figures.after, figures.last, strict=True)
    ]
    pairs = [(after, warm) for after, warm in pairs if warm]
    return Check(
        "memory of each daemon that lived long: bounded once it is warm",
        "; ".join(f"{a / 2**20:.0f} MiB (warm {w / 2**20:.0f})" for a, w in pairs) or "none did",
        bool(pairs)
        and all(after <= warm * _MEMORY_GROWTH + _MEMORY_SLACK_BYTES for after, warm in pairs),
    )
