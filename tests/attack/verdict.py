"""Decide by the figures of an attack which promises were kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.attack.run import (
    QUIET,
    RECOVERY_S,
    Figures,
    Phase,
    hits_p50_s,
    is_as_before,
    last_hits_s,
)

MIB = 2**20
LONGEST_HOLD_S = 0.05
MOST_LOG_BYTES_PER_S = 64 * 1024
# The memory tier's 16 MiB, and what allocators keep for the next time.
_MEMORY_LEFT_BYTES = 64 * MIB
_DESCRIPTORS_LEFT = 16
# Of what the daemon may hold for calls by default: receive_bytes and what follows from it.
_MEMORY_MEANWHILE_BYTES = 512 * MIB


@dataclass(frozen=True)
class Check:
    """A promise, and what was measured."""

    promise: str
    seen: str
    kept: bool


def judge(figures: Figures) -> list[Check]:
    """Return a check for each promise."""
    return [
        _calls(figures),
        _recovered(figures),
        _holds(figures),
        _memory(figures),
        _descriptors(figures),
        _log(figures),
        Check(
            "honest modules in quarantine: 0",
            ", ".join(figures.condemned) or "0",
            not figures.condemned,
        ),
        Check(
            "a newcomer is served afterwards",
            "; ".join(figures.afterwards) or "yes",
            not figures.afterwards,
        ),
        _neighbours(figures),
        Check(
            "the daemon's exit code after SIGTERM: 0",
            str(figures.exit_code),
            figures.exit_code == 0,
        ),
    ]


def longest_hold_s(phase: Phase) -> float:
    """Return the longest CPU time for which one callback held the loop; below 10 ms is 0."""
    return max((hold.cpu_s for hold in phase.holds), default=0.0)


def log_bytes_per_s(phase: Phase) -> float:
    """Return how fast the daemon's log grew."""
    return phase.log_bytes / (phase.ended_s - phase.began_s)


def failed(phase: Phase) -> Counter[str]:
    """Return the outcomes of the honest calls that failed."""
    return Counter(
        f"{call.kind}: {call.outcome}: {call.wrong or call.said[:200]}"
        for call in (*phase.calls, *phase.afterwards)
        if not call.as_expected
    )


def _calls(figures: Figures) -> Check:
    calls = sum(len(phase.calls) + len(phase.afterwards) for phase in figures.phases)
    bad = [(phase.name, *each) for phase in figures.phases for each in failed(phase).items()]
    told = [f"{count} of {what} ({name})" for name, what, count in bad[:8]]
    total = sum(count for *_, count in bad)
    return Check(
        "honest calls that failed or got a wrong artifact: 0",
        "; ".join([f"{total} of {calls:,}", *told]),
        not bad,
    )


def _recovered(figures: Figures) -> Check:
    quiet = next(phase for phase in figures.phases if phase.name == QUIET)
    before_s = hits_p50_s(quiet.calls)
    p50s = {
        phase.name: last_hits_s(phase.afterwards) for phase in figures.phases if phase is not quiet
    }
    worst = max(p50s, key=lambda name: p50s[name])
    after_s = p50s[worst]
    return Check(
        f"hits within {RECOVERY_S:.0f} s after an attack: a p50 of at most twice that before,"
        " and 5 ms",
        f"{after_s * 1e3:.1f} ms ({worst}; before {before_s * 1e3:.1f})",
        is_as_before(after_s, before_s),
    )


def _holds(figures: Figures) -> Check:
    worst = max(figures.phases, key=longest_hold_s)
    seen = f"{longest_hold_s(worst) * 1e3:.0f} ms ({worst.name})"
    return Check(
        f"the longest time that one callback held the loop: at most {LONGEST_HOLD_S * 1e3:.0f} ms",
        seen,
        longest_hold_s(worst) <= LONGEST_HOLD_S,
    )


def _memory(figures: Figures) -> Check:
    before, after = figures.before.memory_bytes, figures.after.memory_bytes
    peak = max(sample.memory_bytes for phase in figures.phases for sample in phase.samples)
    return Check(
        f"memory afterwards: at most {_MEMORY_LEFT_BYTES // MIB} MiB more than before,"
        f" meanwhile {_MEMORY_MEANWHILE_BYTES // MIB} MiB",
        f"{after // MIB} MiB (before {before // MIB}, at most {peak // MIB})",
        after <= before + _MEMORY_LEFT_BYTES and peak <= before + _MEMORY_MEANWHILE_BYTES,
    )


def _descriptors(figures: Figures) -> Check:
    before, after = figures.before.descriptors, figures.after.descriptors
    peak = max(sample.descriptors for phase in figures.phases for sample in phase.samples)
    return Check(
        f"descriptors afterwards: at most {_DESCRIPTORS_LEFT} more than before",
        f"{after} (before {before}, at most {peak:,})",
        after <= before + _DESCRIPTORS_LEFT,
    )


def _log(figures: Figures) -> Check:
    quiet = next(phase for phase in figures.phases if phase.name == QUIET)
    worst = max(figures.phases, key=log_bytes_per_s)
    most = MOST_LOG_BYTES_PER_S + log_bytes_per_s(quiet)
    return Check(
        f"growth of the log: at most {MOST_LOG_BYTES_PER_S // 1024} KiB/s more than without attack",
        f"{log_bytes_per_s(worst) / 1024:.1f} KiB/s ({worst.name};"
        f" without {log_bytes_per_s(quiet) / 1024:.1f})",
        log_bytes_per_s(worst) <= most,
    )


def _neighbours(figures: Figures) -> Check:
    allowed = Counter[str]()
    for phase in figures.phases:
        allowed.update({k: n for k, n in phase.done.items() if k.endswith(" allowed")})
    seen = ", ".join(f"{name} {count}" for name, count in allowed.items())
    return Check("signals and limits that others could set: 0", seen or "0", not allowed)
