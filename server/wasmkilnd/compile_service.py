"""The request path of Compile, in the order in which it happens.

A call looks the artifact up, else joins the flight that makes it. The flight looks again, claims
the artifact in the fleet, waits for a worker, compiles and stores. This file knows the ports
alone: no gRPC, no Redis, no engine.

**Fast code first.** "Optimised" is what a call gets without ``accept_fast``; "fast" is the same but
for the setting that chooses the engine's fast compiler. What a call with ``accept_fast`` gets,
where the first case that fits counts:

1. It names the setting itself, or the engine has no fast compiler: as without ``accept_fast``.
2. It skips the look-up: both are compiled anew, as in case 5.
3. A tier has the optimised artifact: that one.
4. A tier has the fast one: that one, and the optimised one is compiled behind. This needs no module
   in a tier; without one, nothing is compiled behind.
5. No tier has either: the fast one is compiled now, in a flight like any other. When it is there,
   the optimised one is compiled behind, even if every caller has left. This holds too while an
   optimised compile waits or runs: nobody knows how long it takes.
6. The fast compile fails, and the optimised one may not (``_MAY_SUCCEED_OPTIMISED``): the optimised
   one, in the same call, as without ``accept_fast``. The failure counts against the fast
   fingerprint only. So a module in quarantine for the fast compiler goes here at once.
7. The fast compile fails for a reason that concerns both, such as a full queue or an invalid
   module: that error.

An optimised compile that fails behind, or that the quarantine refuses, costs no caller anything:
the fast artifact goes on serving. It is not tried again for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakValueDictionary

import structlog

from wasmkilnd import errors
from wasmkilnd.account import Bill
from wasmkilnd.admission import Admission, check_sha256
from wasmkilnd.cache.cache import Cache
from wasmkilnd.compiles_behind import BehindSlots, CompilesBehind
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Flights, Ticket, WaitBudget, Waiters
from wasmkilnd.model import Artifact, CacheKey, CompileSpec, ExternType, Module, Origin
from wasmkilnd.ports import Claim, CompiledCode, Engines, Fleet, Recorder, Refused
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.requests import CompileRequest, Served, Terms
from wasmkilnd.signing.sealer import Sealer

log = structlog.get_logger("wasmkilnd")

_MAY_SUCCEED_OPTIMISED = frozenset(
    {
        Reason.ENGINE_LACKS_FEATURE,
        Reason.SETTING_UNKNOWN,  # the engine refuses it together with another setting
        Reason.COMPILER_CRASHED,
        Reason.COMPILE_TIMEOUT,
        Reason.COMPILE_MEMORY_LIMIT,
        Reason.ARTIFACT_TOO_LARGE,  # fast code is larger
        Reason.MODULE_QUARANTINED,
    }
)
# A job that waited longer than this for a worker checks the quarantine again: the module may
# have broken another daemon's compiler meanwhile.
_RECHECK_QUARANTINE_AFTER_S = 0.1


@dataclass(frozen=True, slots=True)
class CompileWork:
    """What one flight compiles."""

    key: CacheKey
    module: Module
    uploaded: bool
    """Whether the module came with the call, rather than from a tier."""
    spec: CompileSpec
    recompile: bool
    """Whether to compile even if the artifact is stored or another daemon compiles it."""
    budget: WaitBudget
    """How long the call that started the flight may still wait for the tiers below memory."""


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
        self._flights = Flights()
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
        """Return what a flight compiles: the fast artifact, where the caller accepts it."""
        fast, sha256 = self._fast(found.spec, request), found.key.module_sha256
        if fast is None:
            return await self._make(found, request.terms)
        work = replace(found, key=fast.key_for(sha256), spec=fast)
        try:
            return await self._make(work, request.terms, behind=found)
        except WasmkilnError as failure:
            if failure.reason not in _MAY_SUCCEED_OPTIMISED:
                raise
            log.info(
                "fast code not made",
                module=sha256,
                engine=fast.engine.id,
                reason=failure.reason.value,
                cause=failure.message,
            )
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
            return Served(artifact, origin, host_file=file)
        found = await self._cache.get(key, budget, request.accept_encodings)
        return Served(*found) if found else None

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
            ticket.on_end(partial(self._add_behind, behind, terms))
        served = await ticket.wait()
        return Served(served.artifact, Origin.JOINED_FLIGHT) if ticket.joined else served

    def _add_behind(self, work: CompileWork, terms: Terms, made: object) -> None:
        if isinstance(made, Served):
            sha256, account, anew = work.key.module_sha256, terms.account, work.recompile
            self.behind.add(sha256, work.spec, account, anew=anew)

    def _join(self, work: CompileWork, terms: Terms) -> Ticket[Served]:
        flight, run = (work.key, work.recompile), partial(self._compile, work)
        if flight in self._flights:
            return self._flights.join(flight, terms.waiter, run)
        begun = self._admission.begin(
            work.spec.engine.id, work.module, terms, compiles=True, arrived=work.uploaded
        )
        ticket = self._flights.join(flight, terms.waiter, run, begun.bill)
        ticket.on_end(lambda _: begun.end())
        return ticket

    def _end_unwanted(self, request: CompileRequest) -> None:
        """End the flight of the daemon's own request, unless a caller waits for it too."""
        spec = self._spec(request, None)
        self._flights.release((spec.key_for(request.sha256), request.skip_cache_lookup))

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
                    return await self._store(work, code, waiters.bill)
                if code is not None:
                    claim.failed()
                    break
                if found := await self._from_fleet(work, claim):
                    return found
        # The claim has ended, so asking other engines now blocks neither a worker nor another
        # daemon.
        raise await code()

    async def _compile_in_worker(
        self, work: CompileWork, claim: Claim, waiters: Waiters
    ) -> CompiledCode | Refused | None:
        """Compile in a worker.

        Return None if the artifact is stored, or another daemon compiles it.
        """

        async def still_needed(queued_s: float) -> bool:
            if queued_s > _RECHECK_QUARANTINE_AFTER_S:
                await self._quarantine.check(work.key, work.budget)
            stored = not work.recompile and self._cache.peek(work.key)
            return not stored and await claim.take()

        async with self._quarantine.watch(work.key, work.spec, work.budget):
            return await self._engines.compile(
                work.spec, work.module, waiters, ready=still_needed, unless=claim.stored
            )

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
        artifact = self._sealer.seal(
            Artifact(
                module_sha256=work.module.sha256,
                kind=work.module.kind,
                spec=work.spec,
                sha256=code.code.sha256,
                size_bytes=code.code.size_bytes,
                frames=code.code.frames,
                compile_time_s=code.compile_time_s,
                imports=tuple(ExternType(*row) for row in code.imports),
                exports=tuple(ExternType(*row) for row in code.exports),
                types_truncated=code.types_truncated,
            )
        )
        if work.uploaded:
            # The engine accepted the module, which is all that Load would have asked.
            self._cache.put(work.module)
        self._cache.put(artifact)
        bill.stored(artifact.size_bytes + (len(work.module.wasm) if work.uploaded else 0))
        return Served(artifact, Origin.COMPILED, code.queue_time_s)
