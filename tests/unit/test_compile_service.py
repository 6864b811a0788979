"""The request path over doubles at its ports: what it calls, in which order, how often."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from wasmkilnd import errors
from wasmkilnd.admission import Admission
from wasmkilnd.cache.fleet.null_fleet import NullClaim, NullFleet, NullStrikes
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.compile_service import CompileService
from wasmkilnd.engines.scheduling.ticket import Unless
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import (
    CacheKey,
    CompileSpec,
    EngineIdentity,
    EvictScope,
    Kind,
    Limits,
    Module,
    Origin,
)
from wasmkilnd.module_service import ModuleService
from wasmkilnd.ports import CompiledCode, Refused, Sealer, Tier
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.requests import CompileRequest, LoadRequest, Terms, WantedArtifact
from wasmkilnd.wait_budget import WaitBudget
from wasmkilnd.waiters import Waiter, Waiters
from wasmkilnd.wire import pack

from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.doubles.shelf import Shelf

CORE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"
LIMITS = Limits(1000, 1000, 1, 1, 1, 1, 100)


class Engines:
    """Two engines: the default takes core modules, the other both."""

    def __init__(self) -> None:
        self.compiles = 0
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.failure: WasmkilnError | None = None
        self.refusal: Refused | None = None
        self.workers = 0
        self.keep = True
        self.validating = 0
        self.free = asyncio.Event()
        self.free.set()
        self.wait_s = 0.0
        self.asked: list[tuple[str, Waiter, Waiters | None]] = []
        self.forgotten: list[EvictScope] = []

    def choose(self, engine: str, kind: Kind | None) -> str:
        return engine or ("other" if kind is Kind.COMPONENT else "usual")

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        identity = EngineIdentity(engine_id, "1", "1", "c")
        print_ = hashlib.sha256(f"{engine_id}/{target}/{cpu}/{dict(settings)}".encode()).hexdigest()
        return CompileSpec(identity, target, cpu, settings, {}, print_)

    @asynccontextmanager
    async def worker(
        self, spec: CompileSpec, module: Module, waiters: Waiters, *, unless: Unless
    ) -> AsyncIterator[EngineWorker | None]:
        self.started.set()
        watching = asyncio.create_task(unless())
        waiting = asyncio.create_task(self.free.wait())
        began_s = time.monotonic()
        try:
            await asyncio.wait((watching, waiting), return_when=asyncio.FIRST_COMPLETED)
            self.workers += 1
            queued_s = time.monotonic() - began_s
            yield EngineWorker(self, spec, waiters, queued_s) if waiting.done() else None
        finally:
            self.workers = 0
            watching.cancel()
            waiting.cancel()

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        self.validating += 1
        await self.release.wait()
        self.validating -= 1
        async with watch if module.kind is Kind.COMPONENT else nullcontext():
            if self.failure:
                raise self.failure

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, waiters: Waiters | None
    ) -> float:
        self.asked.append((engine_id, waiter, waiters))
        return self.wait_s

    def forget(self, scope: EvictScope) -> None:
        self.forgotten.append(scope)


@dataclass
class EngineWorker:
    engines: Engines
    spec: CompileSpec
    waiters: Waiters
    queued_s: float

    async def compile(self) -> CompiledCode | Refused:
        engines = self.engines
        engines.compiles += 1
        self.waiters.kept = engines.keep
        await engines.release.wait()
        if engines.failure:
            raise engines.failure
        if engines.refusal:
            return engines.refusal
        code = pack(b"code of " + self.spec.engine.name.encode())
        return CompiledCode(code, 0.5, 0.1, [], [], False)


class CountingShelf(Shelf):
    runs = 0

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        self.runs += 1
        return await super().run(commands)


class Rig:
    def __init__(self, far: Tier | None = None, sealer: Sealer | None = None) -> None:
        self.engines = Engines()
        self.recorder = Notes()
        self.memory = MemoryTier(1_000_000)
        far = far or NullTier("redis")
        self.writes = WriteBehind(far, lambda: 100_000, NullTier("").always_ready)
        self.cache = cache = TieredCache(self.memory, self.memory, far, self.writes)
        self.quarantine = Quarantine(NullStrikes(), self.recorder, lambda: 600.0)
        admission = Admission(self.engines, Reloadable(LIMITS))
        self.modules = ModuleService(cache, self.engines, self.quarantine, admission)
        self.fleet = NullFleet()
        self.service = CompileService(
            cache,
            self.fleet,
            self.engines,
            sealer or NoSealer(),
            self.quarantine,
            self.recorder,
            admission,
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_hit_compiles_nothing(rig: Rig) -> None:
    first = await rig.service.compile(CompileRequest(wasm=CORE))
    again = await rig.service.compile(CompileRequest(sha256=first.artifact.module_sha256))
    assert again.artifact is first.artifact
    assert (first.origin, again.origin) == (Origin.COMPILED, Origin.MEMORY)
    assert first.queue_time_s == 0.1
    assert rig.engines.compiles == 1
    assert rig.recorder.origins == [Origin.COMPILED, Origin.MEMORY]


async def test_skipping_the_look_up_compiles_again(rig: Rig) -> None:
    await rig.service.compile(CompileRequest(wasm=CORE))
    again = await rig.service.compile(CompileRequest(wasm=CORE, skip_cache_lookup=True))
    assert again.origin is Origin.COMPILED
    assert rig.engines.compiles == 2


async def test_an_unknown_digest_is_module_not_loaded(rig: Rig) -> None:
    with pytest.raises(WasmkilnError) as failure:
        await rig.service.compile(CompileRequest(sha256="0" * 64))
    assert failure.value.reason is Reason.MODULE_NOT_LOADED


async def test_a_component_by_digest_goes_to_the_engine_that_takes_it(rig: Rig) -> None:
    loaded = await rig.modules.load(LoadRequest(COMPONENT))
    served = await rig.service.compile(CompileRequest(sha256=loaded.module.sha256))
    assert served.artifact.spec.engine.name == "other"
    again = await rig.service.compile(CompileRequest(sha256=loaded.module.sha256))
    assert again.origin is Origin.MEMORY
    wanted = [WantedArtifact(loaded.module.sha256), WantedArtifact("1" * 64)]
    assert await rig.modules.find_missing(wanted) == [1]


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


async def test_a_module_that_does_not_compile_is_not_stored(rig: Rig) -> None:
    rig.engines.failure = errors.module_invalid("usual", "bad", 8)
    with pytest.raises(WasmkilnError):
        await rig.service.compile(CompileRequest(wasm=CORE))
    with pytest.raises(WasmkilnError):
        await rig.modules.load(LoadRequest(CORE))
    assert rig.memory.usage().entries == 0
    assert rig.service.flights == 0


async def test_load_is_idempotent_and_lists_artifacts_in_memory(rig: Rig) -> None:
    first = await rig.modules.load(LoadRequest(CORE))
    await rig.service.compile(CompileRequest(sha256=first.module.sha256))
    again = await rig.modules.load(LoadRequest(CORE, first.module.sha256))
    assert (first.already_loaded, again.already_loaded) == (False, True)
    assert [artifact.spec.engine.name for artifact in again.artifacts] == ["usual"]


async def test_concurrent_calls_share_a_flight_that_outlives_its_callers(rig: Rig) -> None:
    rig.engines.release.clear()
    calls = [asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE))) for _ in range(50)]
    await rig.engines.started.wait()
    for call in calls[::2]:
        call.cancel()
    await asyncio.sleep(0)
    rig.engines.release.set()
    answers = [await call for call in calls[1::2]]
    assert rig.engines.compiles == 1
    assert {served.origin for served in answers} == {Origin.JOINED_FLIGHT}
    assert rig.recorder.joined == 25


async def test_shutting_down_ends_flights_with_server_draining(rig: Rig) -> None:
    rig.engines.release.clear()
    call = asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE)))
    await rig.engines.started.wait()
    assert await rig.service.settle(0.01) == 1
    with pytest.raises(WasmkilnError) as failure:
        await call
    assert failure.value.reason is Reason.SERVER_DRAINING


async def test_find_missing_refuses_malformed_digests(rig: Rig) -> None:
    with pytest.raises(WasmkilnError) as failure:
        await rig.modules.find_missing([WantedArtifact("x")])
    assert failure.value.reason is Reason.INVALID_REQUEST


async def test_a_module_that_broke_the_compiler_is_refused_the_next_time(rig: Rig) -> None:
    rig.engines.failure = errors.compile_timeout("usual-1", "compiling", 30)
    for reason in (Reason.COMPILE_TIMEOUT, Reason.MODULE_QUARANTINED, Reason.MODULE_QUARANTINED):
        with pytest.raises(WasmkilnError) as raised:
            await rig.service.compile(CompileRequest(wasm=CORE, skip_cache_lookup=True))
        assert raised.value.reason is reason
    assert rig.engines.compiles == 1
    with pytest.raises(WasmkilnError, match="did not finish"):  # Another engine starts clean.
        await rig.service.compile(CompileRequest(wasm=CORE, engine="other"))
    rig.engines.failure = None
    await rig.quarantine.release("")
    assert (await rig.service.compile(CompileRequest(wasm=CORE))).origin is Origin.COMPILED


async def test_a_component_that_broke_an_engine_is_refused_by_load_and_compile(rig: Rig) -> None:
    rig.engines.failure = errors.compile_timeout("other-1", "validating", 30)
    for reason in (Reason.COMPILE_TIMEOUT, Reason.MODULE_QUARANTINED, Reason.MODULE_QUARANTINED):
        with pytest.raises(WasmkilnError) as raised:
            await rig.modules.load(LoadRequest(COMPONENT))
        assert raised.value.reason is reason
    with pytest.raises(WasmkilnError, match="is refused for"):
        await rig.service.compile(CompileRequest(wasm=COMPONENT))
    # With another target its compile is another matter.
    with pytest.raises(WasmkilnError, match="did not finish"):
        await rig.service.compile(CompileRequest(wasm=COMPONENT, target="elsewhere"))
    await rig.quarantine.release("")
    with pytest.raises(WasmkilnError, match="did not finish"):
        await rig.service.compile(CompileRequest(wasm=COMPONENT))
    with pytest.raises(WasmkilnError, match="is refused for"):
        await rig.modules.load(LoadRequest(COMPONENT))


async def test_a_module_that_broke_a_compiler_while_its_job_waited_is_refused(rig: Rig) -> None:
    rig.engines.free.clear()
    waiting = asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE)))
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
    waiting = asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE)))
    await rig.engines.started.wait()
    busy, rig.engines.free = rig.engines.free, asyncio.Event()
    rig.engines.free.set()
    anew = await rig.service.compile(CompileRequest(wasm=CORE, skip_cache_lookup=True))
    assert anew.origin is Origin.COMPILED
    busy.set()
    assert (await waiting).origin is Origin.MEMORY
    assert rig.engines.compiles == 1


class Claim(NullClaim):
    """A claim whose results a test decides, and whose calls it records."""

    def __init__(self, takes: Sequence[bool] = (True,), stored: Sequence[bool] = ()) -> None:
        self.takes, self.elsewhere = list(takes), list(stored)
        self.said: list[str] = []

    async def take(self) -> bool:
        return self.takes.pop(0)

    async def wait_for_others(self) -> bool:
        return self.elsewhere.pop(0)

    def ignore_others(self) -> None:
        self.said.append("ignored others")

    def failed(self) -> None:
        self.said.append("failed")


def contest(rig: Rig, claim: Claim) -> None:
    """Have the fleet hand out ``claim``."""

    @asynccontextmanager
    async def claimed(
        key: CacheKey, budget: WaitBudget, *, contested: bool = True
    ) -> AsyncIterator[Claim]:
        assert contested
        yield claim
        claim.said.append("ended")

    rig.fleet.claim = claimed  # type: ignore[method-assign]


async def test_other_daemons_learn_of_a_refusal_before_it_is_explained(rig: Rig) -> None:
    claim = Claim()
    contest(rig, claim)

    class Refusal:
        async def explained(self) -> WasmkilnError:
            assert claim.said == ["failed", "ended"]
            assert rig.engines.workers == 0
            claim.said.append("explained")
            return errors.module_invalid("usual-1", "bad", 8)

    rig.engines.refusal = Refusal()
    assert (await refused(rig.service.compile(CompileRequest(wasm=CORE)))).message
    assert claim.said[-1] == "explained"


async def test_a_job_gives_its_worker_back_while_another_daemon_compiles(rig: Rig) -> None:
    claim = Claim(takes=[False, True], stored=[False])
    contest(rig, claim)

    async def wait_for_others() -> bool:
        assert rig.engines.workers == 0
        return False

    claim.wait_for_others = wait_for_others  # type: ignore[method-assign]
    assert (await rig.service.compile(CompileRequest(wasm=CORE))).origin is Origin.COMPILED
    assert rig.engines.compiles == 1


async def test_an_unusable_artifact_of_another_daemon_is_compiled_here(rig: Rig) -> None:
    claim = Claim(takes=[False, True], stored=[True])
    contest(rig, claim)
    assert (await rig.service.compile(CompileRequest(wasm=CORE))).origin is Origin.COMPILED
    assert claim.said == ["ignored others", "ended"]


async def test_one_call_spends_one_budget_on_the_shared_tier(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WaitBudget] = []
    spent: list[tuple[str, WaitBudget]] = []

    def wait_budget() -> WaitBudget:
        made.append(WaitBudget())
        return made[-1]

    def watch(owner: object, name: str) -> None:
        genuine = getattr(owner, name)

        def watched(*asked: Any, **named: Any) -> Any:
            spent.extend((name, each) for each in asked if isinstance(each, WaitBudget))
            return genuine(*asked, **named)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(rig.cache, "wait_budget", wait_budget)
    for name in ("get", "get_module", "missing", "kinds_of"):
        watch(rig.cache, name)
    watch(rig.fleet, "claim")
    for name in ("check", "report"):
        watch(rig.quarantine, name)

    async def asked_by(call: Coroutine[Any, Any, object]) -> list[str]:
        made.clear()
        spent.clear()
        await asyncio.gather(call, return_exceptions=True)
        assert {id(budget) for _, budget in spent} == {id(budget) for budget in made}
        assert len(made) == 1
        return [name for name, _ in spent]

    sha256 = (await rig.modules.load(LoadRequest(COMPONENT))).module.sha256
    assert await asked_by(rig.modules.load(LoadRequest(COMPONENT))) == ["get_module", "check"]
    rig.engines.failure = errors.compile_timeout("usual-1", "compiling", 30)
    compiling = rig.service.compile(CompileRequest(sha256=sha256))
    looks = ["get", "get_module", "get", "claim", "check", "report"]
    assert await asked_by(compiling) == looks
    finding = rig.modules.find_missing([WantedArtifact(sha256)])
    assert await asked_by(finding) == ["missing", "kinds_of"]


A = Waiter("a")


def in_time(seconds: float, waiter: Waiter = A) -> Terms:
    return Terms(waiter, asyncio.get_running_loop().time() + seconds)


async def test_a_call_that_would_get_a_worker_after_its_deadline_is_refused(rig: Rig) -> None:
    rig.engines.wait_s = 10.0
    with pytest.raises(WasmkilnError) as failure:
        await rig.service.compile(CompileRequest(wasm=CORE, terms=in_time(0.05)))
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.value.metadata["limit"] == "deadline"
    assert failure.value.retry_after_s == 10.0
    with pytest.raises(WasmkilnError) as failure:
        await rig.modules.load(LoadRequest(CORE, terms=in_time(0.05)))
    assert failure.value.metadata["limit"] == "deadline"
    assert rig.engines.compiles == 0
    assert rig.service.flights == 0
    # Who has the time waits, and so does who set no deadline.
    await rig.service.compile(CompileRequest(wasm=CORE, terms=in_time(60)))
    # What is there is given to whoever asks.
    served = await rig.service.compile(CompileRequest(wasm=CORE, terms=in_time(0.05)))
    assert served.origin is Origin.MEMORY


async def test_a_call_that_would_join_a_flight_waits_as_long_as_the_flight(rig: Rig) -> None:
    rig.engines.release.clear()
    first = asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE, terms=Terms(A))))
    await rig.engines.started.wait()
    rig.engines.wait_s = 10.0
    with pytest.raises(WasmkilnError):
        await rig.service.compile(CompileRequest(wasm=CORE, terms=in_time(1, Waiter("b"))))
    engine_id, waiter, waiters = rig.engines.asked[-1]
    assert (engine_id, waiter) == ("usual-1", Waiter("b"))
    assert waiters is not None
    assert waiters.effective() == {A}
    rig.engines.release.set()
    await first


async def test_a_flight_without_callers_is_dropped_unless_it_is_kept(rig: Rig) -> None:
    rig.engines.release.clear()
    rig.engines.keep = False
    call = asyncio.create_task(rig.service.compile(CompileRequest(wasm=CORE)))
    await rig.engines.started.wait()
    call.cancel()
    await asyncio.sleep(0)
    assert rig.service.flights == 0
    await rig.service.settle(5)
    assert rig.memory.usage().entries == 0


async def test_a_call_that_waits_holds_no_module(rig: Rig) -> None:
    """A hundred callers of one module hold one copy of its bytes, not a hundred."""
    rig.engines.release.clear()
    released: list[int] = []
    orders = [
        CompileRequest(wasm=CORE, terms=Terms(A, None, lambda number=n: released.append(number)))  # type: ignore[misc]
        for n in range(3)
    ]
    calls = [asyncio.create_task(rig.service.compile(order)) for order in orders]
    await rig.engines.started.wait()
    await asyncio.sleep(0)
    assert released == [0, 1, 2]
    assert [order.wasm for order in orders] == [b""] * 3
    assert {order.sha256 for order in orders} == {hashlib.sha256(CORE).hexdigest()}
    rig.engines.release.set()
    await asyncio.gather(*calls)


def sized(number: int, size_bytes: int = 60) -> bytes:
    """Return a module that differs from all others."""
    return CORE + number.to_bytes(size_bytes - len(CORE), "big")


async def refused(call: Any) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        await call
    return failure.value


async def test_the_modules_of_all_work_under_way_have_one_limit(rig: Rig) -> None:
    """A flight holds its module whatever it waits for: the limit is twice that of a queue."""
    rig.engines.release.clear()
    b = Terms(Waiter("b"))
    calls = [
        asyncio.create_task(rig.service.compile(CompileRequest(wasm=sized(0), terms=Terms(A)))),
        asyncio.create_task(rig.modules.load(LoadRequest(sized(1), terms=Terms(A)))),
    ]
    await asyncio.sleep(0.01)
    rig.engines.wait_s = 7.0
    for call in (
        rig.service.compile(CompileRequest(wasm=sized(2), terms=Terms(A))),
        rig.modules.load(LoadRequest(sized(2), terms=Terms(A))),
    ):
        failure = await refused(call)
        assert failure.reason is Reason.COMPILE_QUEUE_FULL
        assert failure.metadata["limit"] == "queue"
        assert failure.retry_after_s == 7.0
    # Who joins holds nothing, and there is room for another caller.
    calls.append(asyncio.create_task(rig.service.compile(CompileRequest(wasm=sized(0), terms=b))))
    calls.append(asyncio.create_task(rig.service.compile(CompileRequest(wasm=sized(3), terms=b))))
    await asyncio.sleep(0.01)
    assert (rig.engines.compiles, rig.engines.validating) == (2, 1)
    rig.engines.release.set()
    await asyncio.gather(*calls)
    # All is put down, whatever became of it.
    rig.engines.failure = errors.module_invalid("usual-1", "bad", 8)
    for _ in range(5):
        assert (await refused(rig.modules.load(LoadRequest(sized(4))))) is rig.engines.failure
        order = CompileRequest(wasm=sized(4))
        assert (await refused(rig.service.compile(order))).reason is Reason.MODULE_INVALID


async def test_a_call_cancelled_at_any_moment_holds_nothing(rig: Rig) -> None:
    rig.engines.release.clear()
    rig.engines.keep = False
    for moment in range(10):
        call = asyncio.create_task(rig.service.compile(CompileRequest(wasm=sized(moment))))
        for _ in range(moment):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
        await rig.service.settle(5)
    rig.engines.release.set()
    await rig.service.compile(CompileRequest(wasm=sized(11)))


async def test_the_receive_budget_is_released_once_admission_counts_the_module(rig: Rig) -> None:
    rig.engines.release.clear()
    released: list[str] = []
    load = LoadRequest(sized(0), terms=Terms(A, None, lambda: released.append("load")))
    compile_ = CompileRequest(
        wasm=sized(1), terms=Terms(A, None, lambda: released.append("compile"))
    )
    calls = [
        asyncio.create_task(rig.modules.load(load)),
        asyncio.create_task(rig.service.compile(compile_)),
    ]
    await asyncio.sleep(0.01)
    assert sorted(released) == ["compile", "load"]
    # Not so what finds no room.
    full = CompileRequest(wasm=sized(2), terms=Terms(A, None, lambda: released.append("full")))
    await refused(rig.service.compile(full))
    assert len(released) == 2
    rig.engines.release.set()
    await asyncio.gather(*calls)
