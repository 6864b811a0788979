"""Load, FindMissing and Evict over doubles at their ports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import (
    EvictScope,
)
from wasmkilnd.requests import CompileRequest, LoadRequest, WantedArtifact

from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.doubles.shelf import Shelf
from tests.unit.services import (
    COMPONENT,
    CORE,
    Rig,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


class CountingShelf(Shelf):
    runs = 0

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        self.runs += 1
        return await super().run(commands)


async def test_a_core_module_of_the_component_engine_is_still_missing_for_the_default(
    rig: Rig,
) -> None:
    served = await rig.service.compile(CompileRequest(wasm=CORE, engine="other"))
    sha256 = served.artifact.module_sha256
    assert await rig.modules.find_missing([WantedArtifact(sha256)]) == [0]
    assert await rig.modules.find_missing([WantedArtifact(sha256, engine="other")]) == []


async def test_find_missing_asks_redis_a_few_times_however_many_keys() -> None:
    shelf = CountingShelf()
    rig = Rig(RedisTier(shelf, NoSealer(), Notes()))
    wanted = []
    for tag in range(50):
        served = await rig.service.compile(CompileRequest(wasm=COMPONENT + bytes([tag])))
        wanted.append(WantedArtifact(served.artifact.module_sha256))
    await rig.writes.close(5)
    await rig.memory.evict(EvictScope())
    shelf.runs = 0
    assert await rig.modules.find_missing([*wanted, WantedArtifact("1" * 64)]) == [50]
    assert shelf.runs <= 5


async def test_load_is_idempotent_and_lists_artifacts_in_memory(rig: Rig) -> None:
    first = await rig.modules.load(LoadRequest(CORE))
    await rig.service.compile(CompileRequest(sha256=first.module.sha256))
    again = await rig.modules.load(LoadRequest(CORE, first.module.sha256))
    assert (first.already_loaded, again.already_loaded) == (False, True)
    assert [artifact.spec.engine.name for artifact in again.artifacts] == ["usual"]


async def test_find_missing_refuses_malformed_digests(rig: Rig) -> None:
    with pytest.raises(WasmkilnError) as failure:
        await rig.modules.find_missing([WantedArtifact("x")])
    assert failure.value.reason is Reason.INVALID_REQUEST
