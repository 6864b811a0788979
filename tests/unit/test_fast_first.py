"""What a call with accept_fast gets, case by case, and what is compiled behind it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from wasmkilnd import errors
from wasmkilnd.compile import THE_DAEMON, Request, Served
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CacheKey, CompileSpec, EvictScope, Origin
from wasmkilnd.waits.budgets import WaitBudget
from wasmkilnd.waits.flights import Waiter

from tests.doubles.tiers import HostFiles
from tests.doubles.until import until
from tests.unit.services import CORE, Rig, refused

SHA256 = hashlib.sha256(CORE).hexdigest()
CRASH = errors.compiler_crashed("wasmtime-1", "was ended by SIGABRT", "", "SIGABRT")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def asking(**fields: object) -> Request:
    return Request(**{"wasm": CORE, "engine": "wasmtime", "accept_fast": True, **fields})  # type: ignore[arg-type]


async def compile_fast(rig: Rig, **fields: object) -> Served:
    return await rig.compiler.compile(asking(**fields))


def spec_of(rig: Rig) -> CompileSpec:
    return rig.engines.spec("wasmtime", "", "", {})


async def behind_ended(rig: Rig) -> None:
    await until(lambda: not rig.compiler.background)


async def test_a_stored_fast_artifact_is_served_without_its_module(rig: Rig) -> None:
    first = await compile_fast(rig)
    await behind_ended(rig)
    optimised = CacheKey(SHA256, spec_of(rig).fingerprint)
    rig.memory.drop([each for each in rig.memory.artifacts() if each.key == optimised])
    again = await compile_fast(rig, wasm=b"", sha256=SHA256)
    assert again.artifact is first.artifact
    assert again.origin is Origin.MEMORY
    await behind_ended(rig)
    assert rig.metrics.behind == ["compiled", "compiled"]


async def test_for_a_caller_of_hits_alone_nothing_is_compiled_behind(rig: Rig) -> None:
    first = await compile_fast(rig)
    await behind_ended(rig)
    optimised = CacheKey(SHA256, spec_of(rig).fingerprint)
    rig.memory.drop([each for each in rig.memory.artifacts() if each.key == optimised])
    again = await compile_fast(rig, wasm=b"", sha256=SHA256, hits_only=True)
    assert again.artifact is first.artifact
    assert len(rig.compiler.background) == 0


async def test_hits_of_fast_code_end_at_memory_while_there_is_no_other() -> None:
    host = HostFiles()
    rig = Rig(host=host)
    spec = spec_of(rig)
    key = CacheKey(SHA256, spec.fingerprint)
    await rig.quarantine.report(key, spec, CRASH, WaitBudget())
    first = await compile_fast(rig)
    await behind_ended(rig)
    asked = host.gets
    for _ in range(100):
        again = await compile_fast(rig, wasm=b"", sha256=SHA256)
        assert (again.artifact, again.origin) == (first.artifact, Origin.MEMORY)
        await behind_ended(rig)
    assert host.gets <= asked + 1
    # What memory lost is looked for in all tiers.
    await rig.cache.evict(EvictScope(), "")
    await host.put(replace(first.artifact, spec=spec))
    again = await compile_fast(rig, wasm=b"", sha256=SHA256)
    assert (again.artifact.spec, again.origin) == (spec, Origin.HOST_STORE)


@pytest.mark.parametrize(
    ("failure", "concerns_both"),
    [
        (CRASH, False),
        (errors.compile_timeout("wasmtime-1", "compiling", 30), False),
        (errors.compile_memory_limit("wasmtime-1", 1000), False),
        (errors.artifact_too_large("wasmtime-1", 1001, 1000), False),
        (errors.engine_lacks_feature("wasmtime-1", "no tail calls", [], fast=True), False),
        (errors.settings_refused("wasmtime-1", "not together"), False),
        (errors.module_invalid("wasmtime-1", "bad", 8), True),
        (errors.compile_queue_full("wasmtime-1", 5, 1.0), True),
        (errors.worker_unavailable("wasmtime-1", "none starts"), True),
    ],
)
async def test_what_the_fast_compiler_alone_cannot_do_the_optimising_one_does(
    rig: Rig, failure: WasmkilnError, concerns_both: bool
) -> None:
    rig.engines.fast_failure = failure
    if concerns_both:
        assert (await refused(compile_fast(rig))).reason is failure.reason
        assert rig.engines.compiles == 1
        return
    served = await compile_fast(rig)
    assert not served.artifact.spec.is_fast
    assert served.origin is Origin.COMPILED
    assert len(rig.compiler.background) == 0
    # Strikes count against the fast fingerprint only.
    fast = rig.engines.fast(spec_of(rig), {})
    assert fast
    found = {strike.key.fingerprint for strike in await rig.quarantine.listed()}
    assert found <= {fast.fingerprint}


async def test_a_fast_compile_that_fails_is_logged_and_not_tried_in_quarantine(rig: Rig) -> None:
    rig.engines.fast_failure = CRASH
    with capture_logs() as lines:
        await compile_fast(rig)
    [line] = [line for line in lines if line["event"] == "fast code not made"]
    assert (line["module"], line["reason"]) == (SHA256, "COMPILER_CRASHED")
    assert "SIGABRT" in line["cause"]
    rig.memory.drop(list(rig.memory.artifacts()))
    assert not (await compile_fast(rig)).artifact.spec.is_fast
    assert [fast for fast, _ in rig.engines.compiled] == [True, False, False]


async def test_an_optimised_module_in_quarantine_leaves_the_fast_one(rig: Rig) -> None:
    spec = spec_of(rig)
    key = CacheKey(SHA256, spec.fingerprint)
    await rig.quarantine.report(key, spec, CRASH, WaitBudget())
    for _ in range(3):
        assert (await compile_fast(rig)).artifact.spec.is_fast
        await behind_ended(rig)
    # It is not tried again with each call.
    assert rig.metrics.behind == ["failed"]
    assert [fast for fast, _ in rig.engines.compiled] == [True]
    failure = await refused(compile_fast(rig, accept_fast=False))
    assert failure.reason is Reason.MODULE_QUARANTINED


async def test_the_end_of_the_daemon_leaves_a_flight_that_a_caller_joined(rig: Rig) -> None:
    await compile_fast(rig)
    rig.engines.release.clear()
    await asyncio.sleep(0.01)
    joined = asyncio.create_task(compile_fast(rig, accept_fast=False))
    await asyncio.sleep(0.01)
    await rig.compiler.end_behind()
    rig.engines.release.set()
    assert not (await joined).artifact.spec.is_fast


async def test_only_so_many_wait_and_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkilnd.compile.MAX_BEHIND", 2)
    await compile_fast(rig)
    rig.engines.release.clear()
    for digit in "1122334":
        rig.compiler.behind(digit * 64, spec_of(rig))
    await until(lambda: rig.engines.compiles >= 2)
    assert len(rig.compiler.background) == 3  # one that runs, two that wait
    assert rig.metrics.behind == ["dropped"] * 3
    rig.engines.release.set()
    await behind_ended(rig)
    assert sorted(rig.metrics.behind) == ["compiled", *["dropped"] * 3, "failed", "failed"]


async def test_namespaces_that_wait_for_a_slot_get_one_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    greedy, other = Rig(), Rig()
    took, free = list[str](), asyncio.Event()
    for rig, name in ((greedy, "greedy"), (other, "other")):

        async def serve(_: Request, name: str = name) -> Served:
            took.append(name)
            await free.wait()
            raise CRASH

        monkeypatch.setattr(rig.compiler, "_serve", serve)
    other.compiler.slots = greedy.compiler.slots
    for digit in "1234":
        greedy.compiler.behind(digit * 64, spec_of(greedy))
    await asyncio.sleep(0.01)
    other.compiler.behind("5" * 64, spec_of(other))
    await asyncio.sleep(0.01)
    free.set()
    await behind_ended(greedy)
    await behind_ended(other)
    assert took == ["greedy", "greedy", "other", "greedy", "greedy"]


async def test_what_the_daemon_makes_ahead_is_behind_all_callers_and_no_call(rig: Rig) -> None:
    await compile_fast(rig, engine="usual", accept_fast=False)
    ahead = Request(SHA256, engine="wasmtime", terms=THE_DAEMON)
    assert (await rig.compiler.ahead(ahead)).origin is Origin.COMPILED
    assert rig.engines.compiled[-1] == (False, {Waiter(background=True, last=True)})
    assert rig.metrics.origins == [Origin.COMPILED]
    assert (await rig.compiler.ahead(ahead)).origin is Origin.MEMORY


async def test_the_end_of_the_daemon_ends_what_it_makes_ahead_and_frees_the_slot(rig: Rig) -> None:
    await compile_fast(rig, engine="usual", accept_fast=False)
    ahead = Request(SHA256, engine="wasmtime", terms=THE_DAEMON)
    rig.engines.release.clear()
    runs, waits = (asyncio.create_task(rig.compiler.ahead(ahead)) for _ in range(2))
    await until(lambda: rig.engines.compiles >= 2)
    await rig.compiler.end_behind()
    for one in (runs, waits):
        assert (await refused(one)).reason is Reason.SERVER_DRAINING
    assert await rig.compiler.flights.settle(5) == 0
    assert (await refused(rig.compiler.ahead(ahead))).reason is Reason.SERVER_DRAINING
