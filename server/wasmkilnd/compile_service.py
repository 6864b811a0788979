"""The request path of Compile, in the order in which it happens.

A call looks the artifact up, else joins the flight that makes it. The flight looks again, claims
the artifact in the fleet, waits for a worker, compiles and stores. This file knows the ports
alone: no gRPC, no Redis, no engine.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from wasmkilnd import errors
from wasmkilnd.account import Bill
from wasmkilnd.admission import Admission, check_sha256
from wasmkilnd.cache.cache import Cache
from wasmkilnd.compile_work import CompileWork
from wasmkilnd.compiles_behind import BehindSlots, CompilesBehind
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.fast_first import optimised_may_succeed
from wasmkilnd.flights import Flights, FlightTicket
from wasmkilnd.model import CacheKey, CompileSpec, Module, Origin
from wasmkilnd.ports import Claim, CompiledCode, Engines, Fleet, Recorder, Refused
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.requests import CompileRequest, Served, Terms
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import WaitBudget
from wasmkilnd.waiters import Waiters

# A job that waited longer than this for a worker checks the quarantine again: the module may
# have broken another daemon's compiler meanwhile.
_RECHECK_QUARANTINE_AFTER_S = 0.1


class CompileService:
    """Serves Compile. For one event loop."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        engines: Engines,
        sealer: Sealer,
        quarantine: Quarantine,
        recorder: Recorder,
        admission: Admission,
        *,
        behind: BehindSlots | None = None,
    ) -> None:
        """``behind`` bounds the compiles at once that no caller waits for; None for one."""
        self._cache = cache
        self._fleet = fleet
        self._engines = engines
        self._sealer = sealer
        self._quarantine = quarantine
        self._recorder = recorder
        self._admission = admission
        # Keyed by ``recompile`` too: a caller that wants a new compilation must not join a
        # flight that may return a stored artifact.
        self._flights: Flights[tuple[CacheKey, bool], Served] = Flights()
        # A call holds its module until it is served; all calls with one module hold one copy.
        self._copies: WeakValueDictionary[str, Module] = WeakValueDictionary()
        self.behind = CompilesBehind(
            self._serve, self._end_unwanted, recorder, behind or BehindSlots(1)
        )

    @property
    def flights(self) -> int:
        """How many compilations are under way or waiting for a worker."""
        return len(self._flights)

    async def compile(self, request: CompileRequest) -> Served:
        """Return the artifact from the nearest place that has it. Raises the errors of Compile."""
        served = await self._serve(request)
        if served.origin is Origin.JOINED_FLIGHT:
            self._recorder.flight_joined()
        self._recorder.served(served.origin)
        return served

    async def end_behind(self) -> None:
        """End the compiles that no caller waits for, and start no more."""
        await self.behind.end()

    async def settle(self, timeout_s: float | None = None) -> int:
        """Let compilations finish, then cancel those that are left; return how many those were.

        Without ``timeout_s``, let them take as long as they need.
        """
        return await self._flights.settle(timeout_s)

    async def _serve(self, request: CompileRequest) -> Served:
        budget = self._cache.wait_budget()
        found = await self._find(request, budget)
        if isinstance(found, Served):
            request.terms.release()
            served = found
        else:
            served = await self._compiled(found, request)
        if request.accept_host_file and served.host_file is None:
            return await self._with_host_file(served, budget)
        return served

    async def _compiled(self, found: CompileWork, request: CompileRequest) -> Served:
        """Return what a flight compiles; the cases with ``accept_fast`` are in fast_first.py."""
        fast = self._fast(found.spec, request)
        if fast is None:
            return await self._make(found, request.terms)
        try:
            return await self._make(found.by(fast), request.terms, behind=found)
        except WasmkilnError as failure:
            if not optimised_may_succeed(fast, found.key.module_sha256, failure):
                raise
        return await self._make(found, request.terms)

    async def _find(self, request: CompileRequest, budget: WaitBudget) -> Served | CompileWork:
        """Look the artifact up; if no tier has it, return what there is to compile."""
        module = None
        if request.wasm or not request.sha256:
            module = await self._admission.admit(request.wasm)
            request.sha256, request.wasm = module.sha256, b""
        sha256 = check_sha256(request.sha256, "sha256")
        uploaded = module is not None
        spec = self._spec(request, module)
        key = spec.key_for(sha256)
        if served := await self._look_up(key, spec, request, budget):
            return served
        if module is None:
            module = await self._cache.get_module(sha256, budget)
            if module is None:
                raise request.refused_miss() or errors.module_not_loaded(sha256)
            # Only the module tells whether it is a component. For a component, a request that
            # names no engine may mean another engine than the default.
            spec = self._spec(request, module)
            if key.fingerprint != spec.fingerprint:
                key = spec.key_for(sha256)
                if served := await self._look_up(key, spec, request, budget):
                    return served
        if refused := request.refused_miss():
            raise refused
        module = self._copies.setdefault(sha256, module)
        return CompileWork(key, module, uploaded, spec, request.skip_cache_lookup, budget)

    def _spec(self, request: CompileRequest, module: Module | None) -> CompileSpec:
        engine_id = self._engines.choose(request.engine, module.kind if module else None)
        return self._engines.spec(engine_id, request.target, request.cpu, request.settings)

    def _fast(self, spec: CompileSpec, request: CompileRequest) -> CompileSpec | None:
        """Return the spec of the fast compiler, if the caller accepts it and there is one."""
        return self._engines.fast(spec, request.settings) if request.accept_fast else None

    async def _look_up(
        self, key: CacheKey, spec: CompileSpec, request: CompileRequest, budget: WaitBudget
    ) -> Served | None:
        if request.skip_cache_lookup:
            return None
        served = await self._get(key, request, budget)
        if served is None and (fast := self._fast(spec, request)):
            fast_key = fast.key_for(key.module_sha256)
            served = await self._get(fast_key, request, budget)
            if served and not request.hits_only:
                self.behind.add(key.module_sha256, spec, request.terms.account)
        return served

    async def _get(
        self, key: CacheKey, request: CompileRequest, budget: WaitBudget
    ) -> Served | None:
        if request.accept_host_file and (mapped := await self._cache.host_file(key, budget)):
            artifact, file, origin = mapped
            served = Served(artifact, origin, host_file=file)
        elif found := await self._cache.get(key, budget, request.accept_encodings):
            served = Served(*found)
        else:
            return None
        return served

    async def _with_host_file(self, served: Served, budget: WaitBudget) -> Served:
        """Return ``served`` with its file, if the host store has it by now or can be filled."""
        mapped = await self._cache.host_file(served.artifact.key, budget)
        if mapped and mapped[0].sha256 == served.artifact.sha256:
            return replace(served, host_file=mapped[1])
        return served

    async def _make(
        self, work: CompileWork, terms: Terms, *, behind: CompileWork | None = None
    ) -> Served:
        """Join the flight that compiles the artifact, and wait for it.

        When the artifact is there, have that of ``behind`` compiled, whether or not the caller
        still waits.
        """
        ticket = self._join(work, terms)
        terms.release()
        if behind:
            sha256, spec, anew = behind.key.module_sha256, behind.spec, behind.recompile
            account = terms.account
            ticket.on_success(lambda: self.behind.add(sha256, spec, account, anew=anew))
        served = await ticket.wait()
        return Served(served.artifact, Origin.JOINED_FLIGHT) if ticket.joined else served

    def _join(self, work: CompileWork, terms: Terms) -> FlightTicket[Served]:
        flight, engine_id = (work.key, work.recompile), work.spec.engine.id
        others = self._flights.waiters(flight)
        self._admission.refuse_if_late(engine_id, work.module, terms, others)
        if others:
            return self._flights.join(flight, Waiters.of(terms.waiter), partial(self._run, work))
        begun = self._admission.begin(
            engine_id, work.module, terms, compiles=True, arrived=work.uploaded
        )
        waiters = Waiters.of(terms.waiter, begun.bill)
        ticket = self._flights.join(flight, waiters, partial(self._run, work))
        ticket.on_end(begun.end)
        return ticket

    def _end_unwanted(self, request: CompileRequest) -> None:
        """End the flight of the daemon's own request, unless a caller waits for it too."""
        spec = self._spec(request, None)
        flight = spec.key_for(request.sha256), request.skip_cache_lookup
        if waiters := self._flights.waiters(flight):
            waiters.release()

    async def _run(self, work: CompileWork, waiters: Waiters) -> Served:
        try:
            return await self._compile(work, waiters)
        except asyncio.CancelledError:
            # If every caller has left, nobody reads this error. Otherwise the daemon is
            # shutting down.
            raise errors.server_draining() from None

    async def _compile(self, work: CompileWork, waiters: Waiters) -> Served:
        """Do the work of a flight."""
        # Another flight of this key may have ended since the caller looked. Without this
        # second look, that interleaving would compile the same module twice.
        if found := await self._find_local(work):
            return found
        async with self._fleet.claim(work.key, work.budget, alone=work.recompile) as claim:
            while True:
                code = await self._compile_in_worker(work, claim, waiters)
                if isinstance(code, CompiledCode):
                    waiters.kept = True  # Store the artifact even if every caller has left.
                    return await self._store(work, code, waiters.bill)
                if code is not None:
                    claim.failed()
                    break
                if found := await self._from_fleet(work, claim):
                    return found
        # The claim has ended, so asking other engines now blocks neither a worker nor another
        # daemon.
        raise await code.explained()

    async def _compile_in_worker(
        self, work: CompileWork, claim: Claim, waiters: Waiters
    ) -> CompiledCode | Refused | None:
        """Compile in a worker.

        Return None if the artifact is stored, or another daemon compiles it.
        """
        async with (
            self._quarantine.watch(work.key, work.spec, work.budget),
            self._engines.worker(work.spec, work.module, waiters, unless=claim.stored) as worker,
        ):
            if worker is None:
                return None
            if worker.queued_s > _RECHECK_QUARANTINE_AFTER_S:
                await self._quarantine.check(work.key, work.budget)
            if not work.recompile and self._cache.peek(work.key):
                return None
            if not await claim.take():
                return None
            return await worker.compile()

    async def _from_fleet(self, work: CompileWork, claim: Claim) -> Served | None:
        """Wait for another daemon's artifact; return None if this daemon has to compile.

        After a few waits the claim stops waiting for other daemons, so the flight's loop ends.
        """
        if found := await self._find_local(work):
            return found
        if await claim.wait_for_others():
            if stored := await self._cache.get(work.key, work.budget):
                return Served(*stored)
            # The stored value cannot be used. Without this, each look would find it again.
            claim.ignore_others()
        return None

    async def _find_local(self, work: CompileWork) -> Served | None:
        artifact = None if work.recompile else await self._cache.get_local(work.key)
        return Served(artifact, Origin.MEMORY) if artifact else None

    async def _store(self, work: CompileWork, code: CompiledCode, bill: Bill) -> Served:
        artifact = self._sealer.seal(work.artifact(code))
        if work.uploaded:
            # The engine accepted the module, which is all that Load would have asked.
            self._cache.put(work.module)
        self._cache.put(artifact)
        bill.stored(artifact.size_bytes + (len(work.module.wasm) if work.uploaded else 0))
        return Served(artifact, Origin.COMPILED, code.queue_time_s)
