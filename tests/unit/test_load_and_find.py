"""Load and FindMissing over doubles at their ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.cache.redis_servers import Command
from wasmkilnd.compile import Request
from wasmkilnd.model import EvictScope

from tests.contract.redis_stores import SEALER, site
from tests.servers.redis_server import binary_of, redis_server
from tests.unit.services import COMPONENT, CORE, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_core_module_of_the_component_engine_is_still_missing_for_the_default(
    rig: Rig,
) -> None:
    served = await rig.compiler.compile(Request(wasm=CORE, engine="other"))
    sha256 = served.artifact.module_sha256
    assert await rig.compiler.find_missing([Request(sha256)]) == [0]
    assert await rig.compiler.find_missing([Request(sha256, engine="other")]) == []


async def test_find_missing_asks_redis_a_few_times_however_many_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        async with site(running.url) as at:
            rig = Rig(at.store, SEALER)
            wanted = []
            for tag in range(50):
                served = await rig.compiler.compile(Request(wasm=COMPONENT + bytes([tag])))
                wanted.append(Request(served.artifact.module_sha256))
            await rig.cache.flush(30)
            await rig.memory.evict(EvictScope())
            run, trips = at.link.run, 0

            async def counted(*commands: Command, timeout_s: float | None = None) -> list[Any]:
                nonlocal trips
                trips += 1
                return await run(*commands, timeout_s=timeout_s)

            monkeypatch.setattr(at.link, "run", counted)
            assert await rig.compiler.find_missing([*wanted, Request("1" * 64)]) == [50]
            assert 1 <= trips <= 5
