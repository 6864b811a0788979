"""The request path: admission, the tiers, one flight per key, the engines.

Every RPC's work happens here, in the order in which it is written. Nothing here
knows gRPC, Redis or an engine: only the ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence

from wasmkilnd import errors, wire
from wasmkilnd.admission import admit, check_sha256
from wasmkilnd.anew import Anew
from wasmkilnd.demand import Demand, Wish
from wasmkilnd.in_force import InForce
from wasmkilnd.ledger import Ledger
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    CompileSpec,
    Evicted,
    EvictScope,
    ExternType,
    Kind,
    Limits,
    Module,
    Origin,
)
from wasmkilnd.order import CompileOrder, Loaded, LoadOrder, Served, Terms, WantedArtifact
from wasmkilnd.ports import Cache, CompiledCode, Engines, Recorder, Sealer, Turn
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.singleflight import Seat, SingleFlight
from wasmkilnd.slices import collect_in_slices

# Hashing less than this takes less time than handing it to a thread and back.
_HASH_INLINE_BYTES = 256 * 1024
# Who waits longer for a worker looks again whether another broke its compiler meanwhile.
_STRIKES_ARE_NEWS_S = 0.1
# What of FindMissing is looked up at once: a matter of milliseconds for the event loop.
_LOOKED_UP_AT_ONCE = 1000


class CompileService:
    """Serves every call. For one event loop."""

    def __init__(
        self,
        cache: Cache,
        engines: Engines,
        sealer: Sealer,
        quarantine: Quarantine,
        recorder: Recorder,
        limits: InForce[Limits],
    ) -> None:
        self._cache = cache
        self._engines = engines
        self._sealer = sealer
        self._quarantine = quarantine
        self._recorder = recorder
        self._limits = limits
        # Who wants it compiled anew must not be given what another found in a tier.
        self._flights: SingleFlight[tuple[CacheKey, bool], Served] = SingleFlight()
        # The modules of all work under way, in bytes, whatever it waits for: another daemon's
        # lease, a worker, or others' work.
        self._modules = Ledger(lambda: 2 * limits.now.queue_bytes)

    @property
    def flights(self) -> int:
        """How many compilations are under way or waiting for a worker."""
        return len(self._flights)

    async def load(self, order: LoadOrder) -> Loaded:
        """Admit, validate and store a module. Raises the errors of Load."""
        module = await self._admit(order.wasm, order.expected_sha256)
        order.sha256 = module.sha256
        engine_id = self._engines.choose(order.engine, module.kind)
        already_loaded = await self._cache.get_module(module.sha256) is not None
        if not already_loaded:
            self._refuse_if_late(engine_id, module, order.terms, None)
        spec = self._engines.spec(engine_id, "", "", {})
        watch = self._quarantine.watch(CacheKey(module.sha256, spec.fingerprint), spec)
        put_down = self._hold(engine_id, module, order.terms.wish)
        order.terms.let_go()
        try:
            await self._engines.validate(engine_id, module, Demand.of(order.terms.wish), watch)
        finally:
            put_down()
        if already_loaded:
            # This daemon may have it in memory when Redis has lost it, and others ask there.
            self._cache.restore_module(module)
        else:
            await self._cache.put_module(module)
        return Loaded(module, engine_id, already_loaded, self._cache.held_in_memory(module.sha256))

    async def compile(self, order: CompileOrder) -> Served:
        """Answer the artifact, from the nearest place that has it. Raises the errors of Compile."""
        found = await self._find_or_board(order)
        order.terms.let_go()
        served = found if isinstance(found, Served) else await self._land(found)
        self._recorder.served(served.origin)
        return served

    async def find_missing(self, wanted: Iterable[WantedArtifact]) -> list[int]:
        """Answer the indices of those that no tier holds, in order.

        They may be many: each is made when it is its turn, and others have theirs between.
        """
        candidates = await collect_in_slices(map(self._keys_of, wanted))
        missing: list[int] = []
        for start in range(0, len(candidates), _LOOKED_UP_AT_ONCE):
            some = candidates[start : start + _LOOKED_UP_AT_ONCE]
            missing += [start + index for index in await self._missing(some)]
            await asyncio.sleep(0)
        return missing

    async def _missing(self, candidates: Sequence[Sequence[CacheKey]]) -> list[int]:
        missing = await self._cache.missing([key for keys in candidates for key in keys])
        # Tells a component's artifact from that of a core module for the same engine.
        kinds = await self._cache.kinds_of(
            [
                key
                for keys in candidates
                if keys[0] in missing
                for key in keys[1:]
                if key not in missing
            ]
        )
        return [
            index
            for index, keys in enumerate(candidates)
            if keys[0] in missing and not any(kinds.get(key) is Kind.COMPONENT for key in keys[1:])
        ]

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Remove what ``scope`` names; answer what went and which tiers did not answer."""
        if scope.module_sha256:
            check_sha256(scope.module_sha256, "module_sha256")
        if not tier:
            self._engines.forget(scope)
        return await self._cache.evict(scope, tier)

    async def settle(self, timeout_s: float | None = None) -> int:
        """Let compilations finish, then give the rest up; answer how many were given up.

        Without ``timeout_s``, let them take as long as they need.
        """
        return await self._flights.settle(timeout_s)

    async def _admit(self, wasm: bytes, expected_sha256: str = "") -> Module:
        limit_bytes = self._limits.now.module_bytes
        if len(wasm) <= _HASH_INLINE_BYTES or len(wasm) > limit_bytes:
            return admit(wasm, limit_bytes, expected_sha256)
        return await asyncio.to_thread(admit, wasm, limit_bytes, expected_sha256)

    def _spec(self, order: CompileOrder, module: Module | None) -> CompileSpec:
        engine_id = self._engines.choose(order.engine, module.kind if module else None)
        return self._engines.spec(engine_id, order.target, order.cpu, order.settings)

    def _keys_of(self, wanted: WantedArtifact) -> list[CacheKey]:
        """Answer the usual key, and where only the module could tell, also a component's."""
        sha256 = check_sha256(wanted.module_sha256, "keys.module_sha256")
        if wanted.fingerprint:
            return [CacheKey(sha256, check_sha256(wanted.fingerprint, "keys.fingerprint"))]
        usual = self._engines.choose(wanted.engine, None)
        for_components = self._engines.choose(wanted.engine, Kind.COMPONENT)
        keys = [CacheKey(sha256, self._fingerprint(usual, wanted))]
        if for_components != usual:
            # A target or setting that only the usual engine has: then it is no component.
            with contextlib.suppress(errors.WasmkilnError):
                keys.append(CacheKey(sha256, self._fingerprint(for_components, wanted)))
        return keys

    def _fingerprint(self, engine_id: str, wanted: WantedArtifact) -> str:
        spec = self._engines.spec(engine_id, wanted.target, wanted.cpu, wanted.settings)
        return spec.fingerprint

    async def _find_or_board(self, order: CompileOrder) -> Served | Seat[Served]:
        """Look the artifact up, or take a seat in the flight that makes it."""
        module = None
        if order.wasm or not order.sha256:
            module = await self._admit(order.wasm)
            order.sha256, order.wasm = module.sha256, b""
        sha256 = check_sha256(order.sha256, "sha256")
        spec = self._spec(order, module)
        served = await self._look_up(sha256, spec, order)
        if served:
            return served
        uploaded = module is not None
        if module is None:
            module = await self._cache.get_module(sha256)
            if module is None:
                raise errors.module_not_loaded(sha256)
            # Only now is it known whether the digest is a component's, for which a
            # request without an engine means another engine than the default.
            better = self._spec(order, module)
            if better.fingerprint != spec.fingerprint:
                spec = better
                served = await self._look_up(sha256, spec, order)
                if served:
                    return served
        return self._board(module, uploaded, spec, order)

    async def _look_up(self, sha256: str, spec: CompileSpec, order: CompileOrder) -> Served | None:
        if order.skip_cache_lookup:
            return None
        found = await self._cache.get(CacheKey(sha256, spec.fingerprint))
        return Served(*found) if found else None

    def _board(
        self, module: Module, uploaded: bool, spec: CompileSpec, order: CompileOrder
    ) -> Seat[Served]:
        key = CacheKey(module.sha256, spec.fingerprint)
        flight = key, order.skip_cache_lookup
        boarding = self._flights.demand(flight)
        self._refuse_if_late(spec.engine.id, module, order.terms, boarding)
        put_down = None if boarding else self._hold(spec.engine.id, module, order.terms.wish)
        seat = self._flights.board(
            flight,
            Demand.of(order.terms.wish),
            lambda demand: self._compile(
                key, module, uploaded, spec, order.skip_cache_lookup, demand
            ),
        )
        if put_down:
            seat.when_over(put_down)
        return seat

    def _hold(self, engine_id: str, module: Module, wish: Wish) -> Callable[[], None]:
        """Count a module that work begins with; answer what ends that.

        Raises COMPILE_QUEUE_FULL. A caller alone may hold as much as may wait for an engine.
        """
        if self._modules.room(wish.caller) <= 0:
            wait_s = self._engines.expected_wait_s(engine_id, module, wish, None)
            raise errors.modules_held(engine_id, self._modules.total, wait_s)
        self._modules.add(wish.caller, len(module.wasm))
        return lambda: self._modules.add(wish.caller, -len(module.wasm))

    def _refuse_if_late(
        self, engine_id: str, module: Module, terms: Terms, demand: Demand | None
    ) -> None:
        """Refuse a call whose turn would come after its deadline, rather than let it wait."""
        if terms.deadline_s is None:
            return
        wait_s = self._engines.expected_wait_s(engine_id, module, terms.wish, demand)
        left_s = terms.deadline_s - asyncio.get_running_loop().time()
        if wait_s > left_s:
            raise errors.deadline_too_near(engine_id, wait_s, left_s)

    async def _land(self, seat: Seat[Served]) -> Served:
        served = await seat.wait()
        if not seat.joined:
            return served
        self._recorder.flight_joined()
        return Served(served.artifact, Origin.JOINED_FLIGHT)

    async def _compile(
        self,
        key: CacheKey,
        module: Module,
        uploaded: bool,
        spec: CompileSpec,
        skip_cache_lookup: bool,
        demand: Demand,
    ) -> Served:
        """Do the one compilation of a flight."""
        turns = contextlib.nullcontext(Anew()) if skip_cache_lookup else self._cache.turn(key)
        try:
            async with turns as turn:
                while (made := await turn.made()) is None:
                    with contextlib.suppress(errors.DoneElsewhere):
                        return await self._make(key, module, uploaded, spec, turn, demand)
                return Served(*made)
        except asyncio.CancelledError:
            # Either nobody waits, or the daemon ends.
            raise errors.server_draining() from None

    async def _make(
        self,
        key: CacheKey,
        module: Module,
        uploaded: bool,
        spec: CompileSpec,
        turn: Turn,
        demand: Demand,
    ) -> Served:
        """Compile and store. Raises DoneElsewhere when another does before a worker is there."""

        async def begin() -> None:
            if time.monotonic() - checked_s > _STRIKES_ARE_NEWS_S:
                await self._quarantine.check(key)
            await turn.begin()

        async with self._quarantine.watch(key, spec):
            checked_s = time.monotonic()
            demand.begin, demand.failed = begin, turn.failed
            code = await turn.unless_made(self._engines.compile(spec, module, demand))
        demand.kept = True  # What is there is stored, whoever left.
        artifact = self._sealer.seal(await self._as_artifact(module, spec, code))
        if uploaded:
            # The engine accepted it, which is what Load would have asked.
            await self._cache.put_module(module)
        await self._cache.put(artifact)
        return Served(artifact, Origin.COMPILED, code.queue_time_s)

    async def _as_artifact(self, module: Module, spec: CompileSpec, code: CompiledCode) -> Artifact:
        if len(code.payload) <= _HASH_INLINE_BYTES:
            sha256, frames = _digest(code.payload), wire.to_frames(code.payload)
        else:
            # Digesting lets other threads run, so the two take as long as the longer one.
            sha256, frames = await asyncio.gather(
                asyncio.to_thread(_digest, code.payload),
                asyncio.to_thread(wire.to_frames, code.payload),
            )
        return Artifact(
            module_sha256=module.sha256,
            kind=module.kind,
            spec=spec,
            sha256=sha256,
            size_bytes=len(code.payload),
            frames=frames,
            compile_time_s=code.compile_time_s,
            imports=tuple(ExternType(*row) for row in code.imports),
            exports=tuple(ExternType(*row) for row in code.exports),
            types_truncated=code.types_truncated,
        )


def _digest(payload: bytes | bytearray) -> str:
    return hashlib.sha256(payload).hexdigest()
