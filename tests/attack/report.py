"""The figures of an attack as tables for docs/explanation/attacks.md."""

from __future__ import annotations

from tests.attack.catalogue import WAYS
from tests.attack.honest import HIT
from tests.attack.run import Figures, Phase
from tests.attack.verdict import MIB, Check, failed, judge, log_bytes_per_s, longest_hold_s
from tests.soak.verdict import percentile


def markdown(figures: Figures, checks: list[Check] | None = None) -> str:
    """Return all figures."""
    return "\n".join(
        [
            "| promise | seen | kept |",
            "|---|---|---|",
            *(
                f"| {check.promise} | {_cell(check.seen)} | {'yes' if check.kept else '**no**'} |"
                for check in (judge(figures) if checks is None else checks)
            ),
            "",
            "| attack | what the attacker did | honest calls | failed | hits, p50 ms | p99 ms"
            " | loop held, ms | memory, MiB | descriptors | log, KiB/s |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *map(_row, figures.phases),
        ]
    )


def _row(phase: Phase) -> str:
    hits = [call for call in phase.calls if call.kind == HIT and call.as_expected]
    did = ", ".join(f"{name} {count:,}" for name, count in phase.done.items())
    cells = [
        WAYS[phase.name].what if phase.name in WAYS else "none",
        _cell(did),
        f"{len(phase.calls):,}",
        f"{sum(failed(phase).values()):,}",
        f"{percentile(hits, 0.5) * 1e3:.1f}",
        f"{percentile(hits, 0.99) * 1e3:.1f}",
        f"{longest_hold_s(phase) * 1e3:.0f}" if phase.holds else "< 10",
        f"{max(sample.memory_bytes for sample in phase.samples) // MIB}",
        f"{max(sample.descriptors for sample in phase.samples):,}",
        f"{log_bytes_per_s(phase) / 1024:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
