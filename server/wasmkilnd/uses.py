"""How often each artifact is served: counted per call, kept as sums that fade."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from wasmkilnd.model import Artifact, CacheKey, CompileSpec

MAX_USES = 10_000
"""How many artifacts have a count; of more, those used least are forgotten."""
HALF_LIFE_S = 24 * 3600.0
"""After this time, a use counts half."""

_LEAST_COUNT = 0.01
# A tally is taken every half minute. What is served for the first time beyond this is not counted.
_MAX_TALLY = 2 * MAX_USES


@dataclass(frozen=True, slots=True)
class UsedSpec:
    """What a use asked for besides the module, as a request for another engine would say it."""

    engine_id: str
    target: str
    cpu: str
    settings: tuple[tuple[str, str], ...]
    """Names and values that differ from the engine's defaults, in order."""

    @classmethod
    def of(cls, spec: CompileSpec) -> UsedSpec:
        """Return what identifies ``spec``."""
        changed = tuple(sorted(spec.changed_settings.items()))
        return cls(spec.engine.id, spec.target, spec.cpu, changed)


Use: TypeAlias = tuple[str, UsedSpec]
"""The module's digest, and what was asked for."""


class Tally:
    """The uses since the last look, of one namespace. For one event loop.

    The request path counts by hand, which costs a memory hit one look-up::

        if (key := artifact.key) in tally.counts:
            tally.counts[key] += 1
        else:
            tally.begin(artifact)
    """

    def __init__(self) -> None:
        self.counts: dict[CacheKey, int] = {}
        self._specs: dict[str, UsedSpec] = {}

    def begin(self, artifact: Artifact) -> None:
        """Count the first use of an artifact."""
        if len(self.counts) < _MAX_TALLY:
            self.counts[artifact.key] = 1
            self._specs[artifact.spec.fingerprint] = UsedSpec.of(artifact.spec)

    def take(self) -> dict[Use, float]:
        """Return what was counted, and begin anew."""
        taken = {
            (key.module_sha256, self._specs[key.fingerprint]): float(count)
            for key, count in self.counts.items()
        }
        self.counts, self._specs = {}, {}
        return taken


class Uses:
    """Sums of uses as of a moment: what lies back counts less."""

    def __init__(self, counts: Mapping[Use, float] | None = None, at_s: float = 0.0) -> None:
        """``at_s`` is the moment, in seconds since 1970."""
        self.counts: dict[Use, float] = dict(counts or {})
        self.at_s = at_s

    def add(self, other: Uses) -> None:
        """Add the uses of ``other``, as of the later of both moments."""
        at_s = max(self.at_s, other.at_s)
        self.fade(at_s)
        left = faded(at_s - other.at_s)
        for use, count in other.counts.items():
            self.counts[use] = self.counts.get(use, 0.0) + count * left
        if len(self.counts) > MAX_USES:
            self.counts = dict(self.most(MAX_USES))

    def fade(self, at_s: float) -> None:
        """Move to a later moment."""
        if at_s > self.at_s:
            left = faded(at_s - self.at_s)
            self.counts = {
                use: count * left
                for use, count in self.counts.items()
                if count * left >= _LEAST_COUNT
            }
            self.at_s = at_s

    def most(self, number: int) -> list[tuple[Use, float]]:
        """Return those used most, the first most of all."""
        return heapq.nlargest(number, self.counts.items(), key=_in_order)

    def of_engine(self, engine_id: str) -> Uses:
        """Return the uses of one engine alone."""
        counts = {use: n for use, n in self.counts.items() if use[1].engine_id == engine_id}
        return Uses(counts, self.at_s)


def summed(each: Iterable[Uses]) -> Uses:
    """Return the sums of several."""
    whole = Uses()
    for one in each:
        whole.add(one)
    return whole


def faded(seconds: float) -> float:
    """Return how much a use of so long ago counts."""
    return float(0.5 ** (max(0.0, seconds) / HALF_LIFE_S))


def _in_order(item: tuple[Use, float]) -> tuple[float, str]:
    (module_sha256, _), count = item
    return count, module_sha256
