"""Decide by the figures of an attack which promises were kept, and show them as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.attack.run import (
    QUIET,
    RECOVERY_S,
    Figures,
    Phase,
    hits_of,
    hits_p50_s,
    is_as_before,
)
from tests.attack.ways import WAYS

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
    phases, before, after = figures.phases, figures.before, figures.after
    quiet, attacks = phases[0], phases[1:]
    assert quiet.name == QUIET
    calls = sum(len(phase.calls) + len(phase.afterwards) for phase in phases)
    bad = [f"{what} ({phase.name})" for phase in phases for what in failures_of(phase)]
    allowed = Counter[str]()
    for phase in phases:
        allowed.update({k: n for k, n in phase.done.items() if k.endswith(" allowed")})
    usual_s = hits_p50_s(quiet.calls)
    slowest = max(attacks, key=lambda phase: phase.recovered_hits_s)
    slowest_s = slowest.recovered_hits_s
    longest = max(phases, key=lambda phase: phase.longest_hold_s)
    samples = [sample for phase in phases for sample in phase.samples]
    memory = max(sample.memory_bytes for sample in samples)
    descriptors = max(sample.descriptors for sample in samples)
    loudest = max(phases, key=log_bytes_per_s)
    return [
        Check(
            "honest calls that failed or got a wrong artifact: 0",
            "; ".join([f"{len(bad)} of {calls:,}", *bad[:8]]),
            not bad,
        ),
        Check(
            f"hits within {RECOVERY_S:.0f} s after an attack: a p50 of at most twice that before,"
            " and 5 ms",
            f"{slowest_s * 1e3:.1f} ms ({slowest.name}; before {usual_s * 1e3:.1f})",
            is_as_before(slowest_s, usual_s),
        ),
        Check(
            "the longest time that one callback held the loop: at most"
            f" {LONGEST_HOLD_S * 1e3:.0f} ms",
            f"{longest.longest_hold_s * 1e3:.0f} ms ({longest.name})",
            longest.longest_hold_s <= LONGEST_HOLD_S,
        ),
        Check(
            f"memory afterwards: at most {_MEMORY_LEFT_BYTES // MIB} MiB more than before,"
            f" meanwhile {_MEMORY_MEANWHILE_BYTES // MIB} MiB",
            f"{after.memory_bytes // MIB} MiB (before {before.memory_bytes // MIB},"
            f" at most {memory // MIB})",
            after.memory_bytes <= before.memory_bytes + _MEMORY_LEFT_BYTES
            and memory <= before.memory_bytes + _MEMORY_MEANWHILE_BYTES,
        ),
        Check(
            f"descriptors afterwards: at most {_DESCRIPTORS_LEFT} more than before",
            f"{after.descriptors} (before {before.descriptors}, at most {descriptors:,})",
            after.descriptors <= before.descriptors + _DESCRIPTORS_LEFT,
        ),
        Check(
            f"growth of the log: at most {MOST_LOG_BYTES_PER_S // 1024} KiB/s more than without"
            " attack",
            f"{log_bytes_per_s(loudest) / 1024:.1f} KiB/s ({loudest.name};"
            f" without {log_bytes_per_s(quiet) / 1024:.1f})",
            log_bytes_per_s(loudest) <= MOST_LOG_BYTES_PER_S + log_bytes_per_s(quiet),
        ),
        _none("honest modules in quarantine: 0", figures.condemned),
        _none("calls of a newcomer that fail afterwards: 0", figures.afterwards),
        _none("signals and limits that others could set: 0", list(allowed)),
        Check(
            "the daemon's exit code after SIGTERM: 0",
            str(figures.exit_code),
            figures.exit_code == 0,
        ),
    ]


def _none(promise: str, found: Sequence[str]) -> Check:
    return Check(promise, "; ".join(found) or "0", not found)


def log_bytes_per_s(phase: Phase) -> float:
    """Return how fast the daemon's log grew."""
    return phase.log_bytes / (phase.ended_s - phase.began_s)


def failures_of(phase: Phase) -> list[str]:
    """Return how honest calls failed."""
    calls = (*phase.calls, *phase.afterwards)
    return [f"{call.kind}: {call.failed[:200]}" for call in calls if call.failed]


def markdown(figures: Figures, checks: Sequence[Check]) -> str:
    """Return all figures as tables for docs/explanation/attacks.md."""
    promises = [(check.promise, check.seen, "yes" if check.kept else "**no**") for check in checks]
    rows = [[cell(phase) for cell in COLUMNS.values()] for phase in figures.phases]
    return "\n".join(
        [
            *_table(("promise", "seen", "kept"), promises),
            "",
            *_table(tuple(COLUMNS), rows),
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]


def _percentile_ms(phase: Phase, share: float) -> str:
    taken = sorted(hits_of(phase.calls)) or [math.nan]
    return f"{taken[max(0, math.ceil(share * len(taken)) - 1)] * 1e3:.1f}"


COLUMNS: dict[str, Callable[[Phase], str]] = {
    "attack": lambda phase: WAYS[phase.name][0] if phase.name in WAYS else "none",
    "what the attacker did": lambda phase: ", ".join(f"{k} {n:,}" for k, n in phase.done.items()),
    "honest calls": lambda phase: f"{len(phase.calls):,}",
    "failed": lambda phase: f"{len(failures_of(phase)):,}",
    "hits, p50 ms": lambda phase: _percentile_ms(phase, 0.5),
    "p99 ms": lambda phase: _percentile_ms(phase, 0.99),
    "loop held, ms": lambda phase: f"{phase.longest_hold_s * 1e3:.0f}",
    "memory, MiB": lambda phase: str(max(s.memory_bytes for s in phase.samples) // MIB),
    "descriptors": lambda phase: f"{max(s.descriptors for s in phase.samples):,}",
    "log, KiB/s": lambda phase: f"{log_bytes_per_s(phase) / 1024:.1f}",
}
