"""The request path over doubles at its ports: what it calls, in which order, how often."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from wasmkilnd import errors
from wasmkilnd.compile import Request, Served
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import WaitBudget
from wasmkilnd.model import (
    CacheKey,
    Origin,
)

from tests.unit.services import (
    CORE,
    Rig,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_memory_hit_waits_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    monkeypatch.setattr(rig.cache, "wait_budget", None)
    hit = rig.compiler.compile(Request(sha256=first.artifact.module_sha256))
    with pytest.raises(StopIteration) as end:
        hit.send(None)
    assert end.value.value == Served(first.artifact, Origin.MEMORY)


async def test_a_module_that_does_not_compile_is_not_stored(rig: Rig) -> None:
    rig.engines.failure = errors.module_invalid("usual", "bad", 8)
    with pytest.raises(WasmkilnError):
        await rig.compiler.compile(Request(wasm=CORE))
    with pytest.raises(WasmkilnError):
        await rig.compiler.load(Request(wasm=CORE))
    assert rig.memory.usage().entries == 0
    assert len(rig.compiler.flights) == 0


async def test_a_module_that_broke_a_compiler_while_its_job_waited_is_refused(rig: Rig) -> None:
    rig.engines.free.clear()
    waiting = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    await asyncio.sleep(0.2)
    spec = rig.engines.spec("usual", "", "", {})
    key = CacheKey(hashlib.sha256(CORE).hexdigest(), spec.fingerprint)
    await rig.quarantine.report(
        key, spec, errors.compile_timeout("usual-1", "compiling", 30), WaitBudget()
    )
    rig.engines.free.set()
    with pytest.raises(WasmkilnError) as failure:
        await waiting
    assert failure.value.reason is Reason.MODULE_QUARANTINED
    assert rig.engines.compiles == 0


async def test_an_artifact_stored_while_its_job_waited_is_not_compiled_again(rig: Rig) -> None:
    rig.engines.free.clear()
    waiting = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    busy, rig.engines.free = rig.engines.free, asyncio.Event()
    rig.engines.free.set()
    anew = await rig.compiler.compile(Request(wasm=CORE, skip_cache_lookup=True))
    assert anew.origin is Origin.COMPILED
    busy.set()
    assert (await waiting).origin is Origin.MEMORY
    assert rig.engines.compiles == 1


async def refused_hits(rig: Rig, **fields: object) -> str:
    async def call() -> None:
        await rig.compiler.compile(Request(hits_only=True, **fields))  # type: ignore[arg-type]

    with pytest.raises(WasmkilnError) as failure:
        await call()
    assert failure.value.reason is Reason.ROLE_MISSING
    return failure.value.metadata["role"]


async def test_a_caller_for_hits_alone_joins_no_flight(rig: Rig) -> None:
    sha256 = hashlib.sha256(CORE).hexdigest()
    rig.engines.release.clear()
    other = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    assert await refused_hits(rig, sha256=sha256) == "compile"
    rig.engines.release.set()
    await other
