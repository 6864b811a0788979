"""The request path of Compile: admission, the tiers, one flight per key, the engines.

Its work happens here, in the order in which it is written. Nothing here knows gRPC, Redis or
an engine: only the ports.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.admission import Admission, check_sha256
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    CompileSpec,
    ExternType,
    Module,
    Origin,
)
from wasmkilnd.ports import Cache, Claim, CompiledCode, Engines, Recorder, Refused, Sealer
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.requests import CompileRequest, Served
from wasmkilnd.singleflight import FlightTicket, SingleFlight
from wasmkilnd.wait_budget import WaitBudget
from wasmkilnd.waiters import Waiters

# Who waits longer for a worker looks again whether another broke its compiler meanwhile.
_STRIKES_ARE_NEWS_S = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    """What one flight is about."""

    key: CacheKey
    module: Module
    uploaded: bool
    """Whether the module came with the call, rather than from a tier."""
    spec: CompileSpec
    anew: bool
    """Whether it is compiled whatever is there and whoever makes it."""
    budget: WaitBudget
    """How long the call that began the flight may still wait for the shared tier."""


class CompileService:
    """Serves Compile. For one event loop."""

    def __init__(
        self,
        cache: Cache,
        engines: Engines,
        sealer: Sealer,
        quarantine: Quarantine,
        recorder: Recorder,
        admission: Admission,
    ) -> None:
        self._cache = cache
        self._engines = engines
        self._sealer = sealer
        self._quarantine = quarantine
        self._recorder = recorder
        self._admission = admission
        # Who wants it compiled anew must not be given what another found in a tier.
        self._flights: SingleFlight[tuple[CacheKey, bool], Served] = SingleFlight()

    @property
    def flights(self) -> int:
        """How many compilations are under way or waiting for a worker."""
        return len(self._flights)

    async def compile(self, request: CompileRequest) -> Served:
        """Return the artifact, from the nearest place that has it. Raises the errors of Compile."""
        found = await self._find_or_join(request, self._cache.wait_budget())
        request.terms.release()
        served = found if isinstance(found, Served) else await self._wait(found)
        self._recorder.served(served.origin)
        return served

    async def settle(self, timeout_s: float | None = None) -> int:
        """Let compilations finish, then give the rest up; return how many were given up.

        Without ``timeout_s``, let them take as long as they need.
        """
        return await self._flights.settle(timeout_s)

    def _spec(self, request: CompileRequest, module: Module | None) -> CompileSpec:
        engine_id = self._engines.choose(request.engine, module.kind if module else None)
        return self._engines.spec(engine_id, request.target, request.cpu, request.settings)

    async def _find_or_join(
        self, request: CompileRequest, budget: WaitBudget
    ) -> Served | FlightTicket[Served]:
        """Look the artifact up, or take a seat in the flight that makes it."""
        module = None
        if request.wasm or not request.sha256:
            module = await self._admission.admit(request.wasm)
            request.sha256, request.wasm = module.sha256, b""
        sha256 = check_sha256(request.sha256, "sha256")
        spec = self._spec(request, module)
        served = await self._look_up(sha256, spec, request, budget)
        if served:
            return served
        uploaded = module is not None
        if module is None:
            module = await self._cache.get_module(sha256, budget)
            if module is None:
                raise errors.module_not_loaded(sha256)
            # Only now is it known whether the digest is a component's, for which a
            # request without an engine means another engine than the default.
            better = self._spec(request, module)
            if better.fingerprint != spec.fingerprint:
                spec = better
                served = await self._look_up(sha256, spec, request, budget)
                if served:
                    return served
        return self._join(module, uploaded, spec, request, budget)

    async def _look_up(
        self, sha256: str, spec: CompileSpec, request: CompileRequest, budget: WaitBudget
    ) -> Served | None:
        if request.skip_cache_lookup:
            return None
        found = await self._cache.get(CacheKey(sha256, spec.fingerprint), budget)
        return Served(*found) if found else None

    def _join(
        self,
        module: Module,
        uploaded: bool,
        spec: CompileSpec,
        request: CompileRequest,
        budget: WaitBudget,
    ) -> FlightTicket[Served]:
        job = _Job(
            CacheKey(module.sha256, spec.fingerprint),
            module,
            uploaded,
            spec,
            request.skip_cache_lookup,
            budget,
        )
        flight, terms = (job.key, job.anew), request.terms
        others = self._flights.waiters(flight)
        self._admission.refuse_if_late(spec.engine.id, module, terms, others)
        release = None if others else self._admission.hold(spec.engine.id, module, terms.waiter)
        ticket = self._flights.join(
            flight, Waiters.of(terms.waiter), lambda waiters: self._fly(job, waiters)
        )
        if release:
            ticket.on_end(release)
        return ticket

    async def _wait(self, ticket: FlightTicket[Served]) -> Served:
        served = await ticket.wait()
        if not ticket.joined:
            return served
        self._recorder.flight_joined()
        return Served(served.artifact, Origin.JOINED_FLIGHT)

    async def _fly(self, job: _Job, waiters: Waiters) -> Served:
        try:
            return await self._compile(job, waiters)
        except asyncio.CancelledError:
            # Either nobody waits, or the daemon ends.
            raise errors.server_draining() from None

    async def _compile(self, job: _Job, waiters: Waiters) -> Served:
        """Do the one compilation of a flight."""
        # Another flight of this key may have landed since the caller looked. Without this
        # second look, that interleaving would compile the same module twice.
        if found := await self._local(job):
            return found
        async with self._cache.claim(job.key, job.budget, contested=not job.anew) as claim:
            while (code := await self._compile_in_worker(job, claim, waiters)) is None:
                if found := await self._from_fleet(job, claim):
                    return found
            if isinstance(code, CompiledCode):
                waiters.kept = True  # What is there is stored, whoever left.
                return await self._store(job, code)
            claim.failed()
        # The worker is free and the fleet knows: now there is time to ask other engines why.
        raise await code.explained()

    async def _compile_in_worker(
        self, job: _Job, claim: Claim, waiters: Waiters
    ) -> CompiledCode | Refused | None:
        """Compile when a worker is there; return None if others have done so, or do."""
        async with (
            self._quarantine.watch(job.key, job.spec, job.budget),
            self._engines.worker(job.spec, job.module, waiters, unless=claim.stored) as worker,
        ):
            if worker is None:
                return None
            if worker.queued_s > _STRIKES_ARE_NEWS_S:
                await self._quarantine.check(job.key, job.budget)
            if not job.anew and await self._cache.has_local(job.key):
                return None
            if not await claim.take():
                return None
            return await worker.compile()

    async def _from_fleet(self, job: _Job, claim: Claim) -> Served | None:
        """Wait for what others make; return None if it is to be made here after all.

        A claim stops believing in others after some times: so this does not go on for ever.
        """
        if found := await self._local(job):
            return found
        if await claim.wait_for_others():
            if stored := await self._cache.get(job.key, job.budget):
                return Served(*stored)
            claim.ignore_others()  # Or it would be found stored, and no good, again and again.
        return None

    async def _local(self, job: _Job) -> Served | None:
        artifact = None if job.anew else await self._cache.get_local(job.key)
        return Served(artifact, Origin.MEMORY) if artifact else None

    async def _store(self, job: _Job, code: CompiledCode) -> Served:
        artifact = self._sealer.seal(_artifact(job.module, job.spec, code))
        if job.uploaded:
            # The engine accepted it, which is what Load would have asked.
            await self._cache.put_module(job.module)
        await self._cache.put(artifact)
        return Served(artifact, Origin.COMPILED, code.queue_time_s)


def _artifact(module: Module, spec: CompileSpec, made: CompiledCode) -> Artifact:
    return Artifact(
        module_sha256=module.sha256,
        kind=module.kind,
        spec=spec,
        sha256=made.code.sha256,
        size_bytes=made.code.size_bytes,
        frames=made.code.frames,
        compile_time_s=made.compile_time_s,
        imports=tuple(ExternType(*row) for row in made.imports),
        exports=tuple(ExternType(*row) for row in made.exports),
        types_truncated=made.types_truncated,
    )
