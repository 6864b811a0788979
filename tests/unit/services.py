"""The services over doubles at their ports, for the tests of each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.compile import Compiler, Tenant
from wasmkilnd.engines.pool import Unless
from wasmkilnd.engines.registry import Refused
from wasmkilnd.engines.verdict import CompiledCode, JobResult
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import FAST_SETTINGS, CompileSpec, EngineIdentity, Kind, Limits, Module
from wasmkilnd.pins import PinFile, Pins
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.redis.fleet import Fleet
from wasmkilnd.redis.records import Strikes
from wasmkilnd.rpc.messages import Capabilities
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.flights import FairShare, Waiter, Waiters

from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.doubles.tiers import HostFiles
from tests.frames import pack

CORE = b"\0asm\x01\0\0\0"
LIMITS = Limits(1000, 1000, 1, 1, 1, 1, 100)
A = Waiter("a")


class Engines:
    """Two engines: the default takes core modules, the other both."""

    def __init__(self) -> None:
        self.served: tuple[str, ...] = ()
        self.compiles = 0
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.failure: WasmkilnError | None = None
        self.refusal: Refused | None = None
        self.workers = 0
        self.keep = True
        self.has_fast = True
        self.fast_failure: WasmkilnError | None = None
        self.compiled: list[tuple[bool, set[Waiter]]] = []
        """Of each compile: whether it was a fast one, and who waited for it."""
        self.validating = 0
        self.free = asyncio.Event()
        self.free.set()

    def choose(self, engine: str, kind: Kind | None) -> str:
        return engine.removesuffix("-1") or ("other" if kind is Kind.COMPONENT else "usual")

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        identity = EngineIdentity(engine_id, "1", "1", "c")
        print_ = hashlib.sha256(f"{engine_id}/{target}/{cpu}/{dict(settings)}".encode()).hexdigest()
        return CompileSpec(identity, target, cpu, settings, {}, print_)

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Only wasmtime and wasmer have a fast compiler."""
        name, value = FAST_SETTINGS.get(spec.engine.name, ("", ""))
        if not name or name in settings or not self.has_fast:
            return None
        changed = {**spec.changed_settings, name: value}
        made = self.spec(spec.engine.name, spec.target, spec.cpu, changed)
        return replace(made, changed_settings=changed)

    async def compile(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        metrics: Metrics,
        *,
        ready: Callable[[float], Awaitable[bool]],
        unless: Unless,
    ) -> CompiledCode | Refused | None:
        self.started.set()
        watching = asyncio.create_task(unless())
        waiting = asyncio.create_task(self.free.wait())
        began_s = time.monotonic()
        try:
            await asyncio.wait((watching, waiting), return_when=asyncio.FIRST_COMPLETED)
            self.workers += 1
            if not waiting.done() or not await ready(time.monotonic() - began_s):
                return None
            waiters.kept = self.keep
            return await self._compiled(spec, waiters)
        finally:
            self.workers = 0
            watching.cancel()
            waiting.cancel()

    async def _compiled(self, spec: CompileSpec, waiters: Waiters) -> CompiledCode | Refused:
        self.compiles += 1
        self.compiled.append((spec.is_fast, set(waiters.waiting)))
        await self.release.wait()
        if self.fast_failure and spec.is_fast:
            raise self.fast_failure
        if self.failure:
            raise self.failure
        if self.refusal:
            return self.refusal
        code = pack(b"code of " + spec.engine.name.encode())
        return CompiledCode(code, JobResult(outcome="ok", seconds=0.5), 0.1)

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


class Rig:
    """The services of one namespace, without a fleet, and without what is not handed in."""

    def __init__(
        self,
        redis: RedisStore | None = None,
        sealer: Sealer | None = None,
        host: HostFiles | None = None,
    ) -> None:
        self.uploads: Any = None  # Nobody uploads.
        self.engines = Engines()
        engines = cast("Any", self.engines)
        self.metrics = Notes()
        sealer = sealer or NoSealer()
        self.memory = MemoryTier(
            1_000_000, lambda module_sha256: self.pins.is_pinned(module_sha256)
        )
        self.cache = cache = Cache(
            self.memory,
            cast("Any", host),
            redis,
            self.metrics,
            call_wait_s=60,
            write_queue_bytes=lambda: 100_000,
        )
        self.pins = Pins(PinFile(Path("unused"), ""), sealer, cache, self.memory, None, None)
        self.quarantine = Quarantine(
            *(Strikes(None, "", sealer), self.metrics, lambda: 600.0, lambda: LIMITS)
        )
        self.fleet = Fleet(
            None, "", self.metrics, cache.redis_writes.settled, lease_s=0, max_wait_s=lambda: 0.0
        )
        self.compiler = Compiler(
            *(cache, self.fleet, engines, sealer, self.quarantine, self.metrics),
            module_bytes=lambda: LIMITS.module_bytes,
            in_progress=FairShare(lambda: 2 * LIMITS.queue_bytes),
            slots=asyncio.Semaphore(1),
        )

    def tenant_of(self, namespace: str) -> Tenant:
        """Return the services, which are those of every namespace."""
        return Tenant(self.compiler, self.quarantine, self.pins, Counter())

    def stats(self, namespace: str) -> pb.StatsResponse:
        """Return an empty response."""
        return pb.StatsResponse()

    def capabilities(self) -> Capabilities:
        """Return those of no engine."""
        return Capabilities("0.0.0", [], "", {}, [], LIMITS, False)


async def refused(call: Any) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        await call
    return failure.value
