"""The metrics of a tier: each look-up and write, and each failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.observed import ObservedTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Kind, Module
from wasmkilnd.wait_budget import Allowance

from tests.contract.values import artifact, module
from tests.doubles.notes import Notes


class Sick(MemoryTier):
    """A tier that never answers."""

    async def get(
        self,
        key: CacheKey,
        allowance: Allowance | None = None,
        accept: frozenset[str] = frozenset(),
    ) -> Artifact | None:
        raise TierUnavailable("sick")

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        raise TierUnavailable("sick")

    async def has_module(self, sha256: str) -> bool:
        raise TierUnavailable("sick")

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        raise TierUnavailable("sick")

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        raise TierUnavailable("sick")


async def test_look_ups_are_recorded_and_answered_questions_are_not() -> None:
    lookups = Notes()
    tier = ObservedTier(MemoryTier(1_000_000), lookups)
    one = artifact(1)
    await tier.get(one.key)
    await tier.put(one)
    await tier.get(one.key)
    await tier.get_module(module(1).sha256)
    await tier.has_module(module(1).sha256)
    await tier.held([one.key])
    await tier.kinds_of([one.key])
    assert lookups.lookups == [("artifact", "miss"), ("artifact", "hit"), ("module", "miss")]


async def test_each_failure_is_recorded() -> None:
    lookups = Notes()
    tier = ObservedTier(Sick(1_000_000), lookups)
    key = artifact(1).key
    for asking in (tier.get(key), tier.held([key]), tier.kinds_of([key])):
        with pytest.raises(TierUnavailable):
            await asking
    for asking_for_a_module in (tier.get_module("x"), tier.has_module("x")):
        with pytest.raises(TierUnavailable):
            await asking_for_a_module
    assert lookups.lookups == [("artifact", "error")] * 3 + [("module", "error")] * 2
