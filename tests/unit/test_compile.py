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
    COMPONENT,
    CORE,
    Rig,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_hit_compiles_nothing(rig: Rig) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    again = await rig.compiler.compile(Request(sha256=first.artifact.module_sha256))
    assert again.artifact is first.artifact
    assert (first.origin, again.origin) == (Origin.COMPILED, Origin.MEMORY)
    assert first.queue_time_s == 0.1
    assert rig.engines.compiles == 1
    assert rig.metrics.origins == [Origin.COMPILED, Origin.MEMORY]


async def test_a_memory_hit_waits_for_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    monkeypatch.setattr(rig.cache, "wait_budget", None)
    hit = rig.compiler.compile(Request(sha256=first.artifact.module_sha256))
    with pytest.raises(StopIteration) as end:
        hit.send(None)
    assert end.value.value == Served(first.artifact, Origin.MEMORY)


async def test_skipping_the_look_up_compiles_again(rig: Rig) -> None:
    await rig.compiler.compile(Request(wasm=CORE))
    again = await rig.compiler.compile(Request(wasm=CORE, skip_cache_lookup=True))
    assert again.origin is Origin.COMPILED
    assert rig.engines.compiles == 2


async def test_an_unknown_digest_is_module_not_loaded(rig: Rig) -> None:
    with pytest.raises(WasmkilnError) as failure:
        await rig.compiler.compile(Request(sha256="0" * 64))
    assert failure.value.reason is Reason.MODULE_NOT_LOADED


async def test_a_component_by_digest_goes_to_the_engine_that_takes_it(rig: Rig) -> None:
    loaded = await rig.compiler.load(Request(wasm=COMPONENT))
    served = await rig.compiler.compile(Request(sha256=loaded.module.sha256))
    assert served.artifact.spec.engine.name == "other"
    again = await rig.compiler.compile(Request(sha256=loaded.module.sha256))
    assert again.origin is Origin.MEMORY
    wanted = [Request(loaded.module.sha256), Request("1" * 64)]
    assert await rig.compiler.find_missing(wanted) == [1]


async def test_a_module_that_does_not_compile_is_not_stored(rig: Rig) -> None:
    rig.engines.failure = errors.module_invalid("usual", "bad", 8)
    with pytest.raises(WasmkilnError):
        await rig.compiler.compile(Request(wasm=CORE))
    with pytest.raises(WasmkilnError):
        await rig.compiler.load(Request(wasm=CORE))
    assert rig.memory.usage().entries == 0
    assert len(rig.compiler.flights) == 0


async def test_concurrent_calls_share_a_flight_that_outlives_its_callers(rig: Rig) -> None:
    rig.engines.release.clear()
    calls = [asyncio.create_task(rig.compiler.compile(Request(wasm=CORE))) for _ in range(50)]
    await rig.engines.started.wait()
    for call in calls[::2]:
        call.cancel()
    await asyncio.sleep(0)
    rig.engines.release.set()
    answers = [await call for call in calls[1::2]]
    assert rig.engines.compiles == 1
    assert {served.origin for served in answers} == {Origin.JOINED_FLIGHT}
    assert rig.metrics.joined == 25


async def test_shutting_down_ends_flights_with_server_draining(rig: Rig) -> None:
    rig.engines.release.clear()
    call = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    assert await rig.compiler.flights.settle(0.01) == 1
    with pytest.raises(WasmkilnError) as failure:
        await call
    assert failure.value.reason is Reason.SERVER_DRAINING


async def test_a_module_that_broke_the_compiler_is_refused_the_next_time(rig: Rig) -> None:
    rig.engines.failure = errors.compile_timeout("usual-1", "compiling", 30)
    for reason in (Reason.COMPILE_TIMEOUT, Reason.MODULE_QUARANTINED, Reason.MODULE_QUARANTINED):
        with pytest.raises(WasmkilnError) as raised:
            await rig.compiler.compile(Request(wasm=CORE, skip_cache_lookup=True))
        assert raised.value.reason is reason
    assert rig.engines.compiles == 1
    with pytest.raises(WasmkilnError, match="did not finish"):  # Another engine starts clean.
        await rig.compiler.compile(Request(wasm=CORE, engine="other"))
    rig.engines.failure = None
    await rig.quarantine.release("")
    assert (await rig.compiler.compile(Request(wasm=CORE))).origin is Origin.COMPILED


async def test_a_component_that_broke_an_engine_is_refused_by_load_and_compile(rig: Rig) -> None:
    rig.engines.failure = errors.compile_timeout("other-1", "validating", 30)
    for reason in (Reason.COMPILE_TIMEOUT, Reason.MODULE_QUARANTINED, Reason.MODULE_QUARANTINED):
        with pytest.raises(WasmkilnError) as raised:
            await rig.compiler.load(Request(wasm=COMPONENT))
        assert raised.value.reason is reason
    with pytest.raises(WasmkilnError, match="is refused for"):
        await rig.compiler.compile(Request(wasm=COMPONENT))
    # With another target its compile is another matter.
    with pytest.raises(WasmkilnError, match="did not finish"):
        await rig.compiler.compile(Request(wasm=COMPONENT, target="elsewhere"))
    await rig.quarantine.release("")
    with pytest.raises(WasmkilnError, match="did not finish"):
        await rig.compiler.compile(Request(wasm=COMPONENT))
    with pytest.raises(WasmkilnError, match="is refused for"):
        await rig.compiler.load(Request(wasm=COMPONENT))


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


async def test_a_caller_for_hits_alone_gets_them_and_has_nothing_compiled(rig: Rig) -> None:
    sha256 = (await rig.compiler.load(Request(wasm=CORE))).module.sha256
    for fields in (
        {"sha256": sha256},
        {"sha256": "0" * 64},
        {"wasm": CORE},
        {"sha256": sha256, "skip_cache_lookup": True},
    ):
        assert await refused_hits(rig, **fields) == "compile"
    assert rig.engines.compiles == 0

    await rig.compiler.compile(Request(sha256=sha256))
    hit = await rig.compiler.compile(Request(sha256=sha256, hits_only=True))
    assert hit.origin is Origin.MEMORY


async def test_a_caller_for_hits_alone_joins_no_flight(rig: Rig) -> None:
    sha256 = hashlib.sha256(CORE).hexdigest()
    rig.engines.release.clear()
    other = asyncio.create_task(rig.compiler.compile(Request(wasm=CORE)))
    await rig.engines.started.wait()
    assert await refused_hits(rig, sha256=sha256) == "compile"
    rig.engines.release.set()
    await other
