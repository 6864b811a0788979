"""The path of Compile and Load for one namespace, in the order in which it happens.

A Compile call looks into memory first: a hit waits for nothing. Otherwise it admits a module
that it brings, looks into all tiers, and joins the flight that makes the artifact. The flight looks
again, claims the artifact in the fleet, waits for a worker, compiles and stores. No gRPC here.

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

An optimised compile that fails behind, or that the quarantine refuses, fails no call: the fast
artifact continues to serve. It is not tried again for a while.

**Admission.** The compile calls of engines accept WebAssembly *text* too, at a cost of seconds and
gigabytes for a few megabytes: so only bytes with the preamble of a binary get that far.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import structlog

from wasmkilnd import errors, model, wire
from wasmkilnd.cache.cache import Cache
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.verdict import CompiledCode
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files.spooled import Spooled
from wasmkilnd.model import Artifact, CacheKey, CompileSpec, Kind, Module, Origin
from wasmkilnd.pins import Pins
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.quota import UNLIMITED, Quota
from wasmkilnd.redis.fleet import Fleet
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import WaitBudget
from wasmkilnd.waits.flights import FairShare, Flights, Run, Ticket, Waiter, Waiters, in_slices

log = structlog.get_logger("wasmkilnd")

V = TypeVar("V")

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
# How many compiles may wait behind; of each, a digest and a spec are kept, and no module.
MAX_BEHIND = 1000
# How long an artifact that could not be made behind is not tried again, and how long hits of fast
# code do not look below memory for an optimised artifact that was in no tier.
_FAILED_S, _MISSING_S = 60.0, 10.0
_MAX_PAUSES = 10_000
# How many keys FindMissing looks up at once: this holds the event loop for milliseconds.
_LOOKED_UP_AT_ONCE = 500
# A larger module that was uploaded stays in its file, in the memory tier too. Smaller ones would
# take too many descriptors.
_KEPT_IN_FILE_BYTES = 8 * 1024 * 1024
# Below this size, hashing takes less time than handing the bytes to a thread and back.
HASH_INLINE_BYTES = 256 * 1024

# How many bytes tell a binary from text.
_BEGINNING = 64
_SETTING = "max_module_bytes"
# The magic, two bytes of version, two of layer.
_KINDS = {b"\0asm\x01\0\0\0": Kind.CORE_MODULE, b"\0asm\x0d\0\x01\0": Kind.COMPONENT}


# What callers ask for, and what they get.


@dataclass(frozen=True, slots=True)
class Terms:
    """Who makes a call, and what the call holds.

    - ``release``: frees the room that the request's bytes take in the receive budget. It is called
      once the call holds no bytes, or its module counts among those being worked on.
    - ``quota``: where the work that the call starts counts.
    - ``module_bytes``: how large its module may be; 0 for as large as that of most callers.
    """

    waiter: Waiter = field(default_factory=Waiter)
    release: Callable[[], None] = lambda: None
    quota: Quota = UNLIMITED
    module_bytes: int = 0


# Of the daemon's own compiles: callers go first, and so does what they warm.
THE_DAEMON = Terms(Waiter(background=True, last=True))


@dataclass(slots=True)
class Request:
    """A call of Compile or Load, or one artifact that FindMissing asks about.

    For Compile, exactly one of ``sha256`` and ``wasm`` is set; for Load, ``sha256`` is what the
    caller expects. Once the module is admitted, its digest replaces its bytes: a call that waits
    for another call's compilation does not hold megabytes.

    - ``accept_host_file``: whether the caller takes a file of the host store instead of the bytes.
    - ``accept_encodings``: how the artifact's bytes may be encoded.
    - ``accept_fast``: whether the caller takes a fast compiler's artifact until the optimised one
      is there.
    - ``hits_only``: whether the caller may have what a tier holds, and nothing compiled for it.
    - ``compatibility``: what the caller's engine shows, in place of ``engine``, ``target``, ``cpu``
      and ``settings``: see ``engines.fits``.
    - ``known``: what the last look into memory knows of every call with the same request: the
      engines that were served and what was known of the caller's, and with those the artifact's
      key, and that of what its code says of itself.
    """

    sha256: str = ""
    wasm: model.Wasm = b""
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    skip_cache_lookup: bool = False
    accept_host_file: bool = False
    accept_encodings: frozenset[str] = frozenset()
    accept_fast: bool = False
    hits_only: bool = False
    compatibility: bytes = b""
    terms: Terms = field(default_factory=Terms)
    known: tuple[object, object, CacheKey, str] | None = None


class Served(NamedTuple):
    """The result of a Compile call.

    - ``host_file``: where the caller can map the artifact; only if it accepts that.
    - ``compatibility``: the key of what the code says of itself; empty where it is not known.
    """

    artifact: Artifact
    origin: Origin
    queue_time_s: float = 0.0
    host_file: model.HostFile | None = None
    compatibility: str = ""


class LoadResult(NamedTuple):
    """The result of a Load call."""

    module: Module
    engine_id: str
    already_loaded: bool
    kept: bool
    artifacts: Sequence[Artifact]


@dataclass(frozen=True, slots=True)
class Work:
    """What one flight compiles.

    - ``uploaded``: whether the module came with the call, rather than from a tier.
    - ``recompile``: whether to compile even if the artifact is stored or another daemon compiles
      it.
    - ``budget``: how long the call that started the flight may still wait for the tiers below
      memory.
    """

    module: Module
    uploaded: bool
    spec: CompileSpec
    recompile: bool
    budget: WaitBudget

    @property
    def key(self) -> CacheKey:
        """Under what every tier stores the artifact."""
        return self.spec.key_for(self.module.sha256)


@dataclass(eq=False, repr=False)
class Compiler:
    """Serves Compile, Load and FindMissing for one namespace. For one event loop.

    - ``module_bytes``: returns how large a module may be, where the terms do not say.
    - ``in_progress``: the bytes of all modules being worked on in all namespaces, whatever that
      work waits for: another daemon's lease, a worker, or another caller's job.
    - ``slots``: how many compiles that no caller waits for may run at once, those of all namespaces
      together. It should leave workers for callers.
    - ``flights``: the compilations and validations that wait for a worker or run. By key and
      purpose: a caller that wants a new compilation must not join a flight that may return a stored
      artifact, and callers who load a module share one validation.
    - ``background``: the compiles that no caller waits for, each a flight around that of its
      artifact.
    """

    cache: Cache
    fleet: Fleet
    engines: EngineRegistry
    sealer: Sealer
    quarantine: Quarantine
    metrics: Metrics
    module_bytes: Callable[[], int]
    in_progress: FairShare
    slots: asyncio.Semaphore
    flights: Flights = field(default_factory=Flights)
    background: Flights = field(default_factory=Flights)
    # Until when an artifact, or a flight behind, is not tried again.
    _paused: dict[Hashable, float] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ends: bool = False
    # A call holds its module until it is served; all calls with one module hold one copy.
    _copies: WeakValueDictionary[str, Module] = field(default_factory=WeakValueDictionary)

    def hit(self, request: Request) -> Served | None:
        """Return what memory has for a digest, as the caller takes it, without waiting.

        The request may be that of many calls. Raises the errors of Compile.
        """
        if not request.sha256 or request.skip_cache_lookup or request.accept_host_file:
            return None
        engines, shown, known = self.engines, request.compatibility, request.known
        fit = engines.fits.get(shown) if shown else None
        if not known or known[0] is not engines.served or known[1] is not fit:
            if shown and not (fit and engines.code_for(fit)):
                return None
            spec = self._spec(request, None)
            made = engines.made_for(shown, spec) if shown else ""
            known = request.known = engines.served, fit, spec.key_for(request.sha256), made
        if not (artifact := self.cache.hit(known[2], request.accept_encodings)):
            return None
        self.metrics.count("served", "memory")
        return Served(artifact, Origin.MEMORY, compatibility=known[3])

    async def compile(self, request: Request) -> Served:
        """Return the artifact from the nearest place that has it; where ``hit`` found none.

        Raises the errors of Compile.
        """
        served = await self._serve(request)
        if shown := request.compatibility:
            made = self.engines.made_for(shown, served.artifact.spec)
            served = served._replace(compatibility=made)
        if served.origin is Origin.JOINED_FLIGHT:
            self.metrics.count("flights_joined")
        self.metrics.count("served", served.origin.value)
        return served

    async def load(self, request: Request) -> LoadResult:
        """Admit, validate and store a module. Raises the errors of Load."""
        budget = self.cache.wait_budget()
        if expected := request.sha256:
            check_sha256(expected, "expected_sha256")
        request.sha256 = ""
        module = await self._admit(request)
        if expected not in ("", module.sha256):
            raise errors.digest_mismatch(expected, module.sha256)
        engine_id = self.engines.choose(request.engine, module.kind)
        already_loaded = await self.cache.has_module(module.sha256, budget)
        spec = self.engines.spec(engine_id, "", "", {})
        key = spec.key_for(module.sha256)

        async def validate(waiters: Waiters) -> None:
            watch = self.quarantine.watch(key, spec, budget)
            await self.engines.validate(engine_id, module, waiters, watch)
            # Also where it is here already: Redis, where others look, may have lost it.
            await self._put(module)
            if not already_loaded:
                waiters.quota.stored(module.size_bytes)

        flight_key = "validate", key
        ticket = self._join(flight_key, engine_id, module, request.terms, validate)
        await ticket.wait()
        kept = await self.cache.has_module(module.sha256, budget)
        artifacts = self.cache.memory.artifacts_of(module.sha256)
        return LoadResult(module, engine_id, already_loaded, kept, artifacts)

    def expect(self, size_bytes: int, engine: str, terms: Terms) -> None:
        """Raise what ``load`` would raise of any module of that size, before it is sent."""
        if size_bytes > (limit := self._limit(terms))[0]:
            raise errors.module_too_large(size_bytes, *limit)
        self.engines.choose(engine, None)

    async def stored(
        self, sha256: str, fingerprint: str, accept: frozenset[str], *, whole: bool
    ) -> tuple[Artifact, Origin]:
        """Return the artifact that a tier holds, of an engine that is served. Compile nothing.

        It may have one of the encodings to ``accept``; unless ``whole``, it may be in its file
        still. Raises ARTIFACT_NOT_STORED.
        """
        budget, served = self.cache.wait_budget(), self.engines.served
        ids = [each.id for each in served]
        # A fingerprint is of one engine. Shared tiers, whose names have the engine's id, are asked
        # under each only if it is no engine's usual one.
        usual = [each.id for each in served if each.spec("", "", {}).fingerprint == fingerprint]
        found = await self.cache.get(
            *(CacheKey(sha256, fingerprint), budget, accept), whole=whole, engines=usual or ids
        )
        if not found or found[0].spec.engine.id not in ids:
            raise errors.artifact_not_stored(sha256, fingerprint)
        return found

    async def find_missing(self, wanted: Iterable[CacheKey | Request]) -> list[int]:
        """Return the indices of those ``wanted`` that no tier holds, in ascending order.

        There may be many: they are parsed and looked up in slices, so other calls continue. Of a
        module for which no engine is named, the key is that of a core module.
        """
        budget = self.cache.wait_budget()
        keys = await in_slices(map(self._key_of, wanted))
        missing: list[int] = []
        for start in range(0, len(keys), _LOOKED_UP_AT_ONCE):
            some = keys[start : start + _LOOKED_UP_AT_ONCE]
            held = await self.cache.held(some, budget)
            missing += [index for index, key in enumerate(some, start) if key not in held]
            await asyncio.sleep(0)
        return missing

    def behind(
        self, sha256: str, spec: CompileSpec, quota: Quota = UNLIMITED, *, anew: bool = False
    ) -> None:
        """Have a module compiled behind all other work, unless that is going to happen anyway.

        With ``anew``, compile it even if a tier holds the artifact. It counts in ``quota``, and
        is not compiled while that is used up.
        """
        flight_key = spec.key_for(sha256), anew
        is_under_way = flight_key in self.background
        if self._ends or is_under_way or self._pauses(flight_key) or not quota.may_compile():
            return
        if len(self.background) > MAX_BEHIND:
            self.metrics.count("compiled_behind", "dropped")
            return
        request = Request(
            *(sha256, b"", spec.engine.id, spec.target, spec.cpu, spec.changed_settings, anew),
            terms=replace(THE_DAEMON, quota=quota),
        )
        behind = partial(self._behind, request, flight_key)
        self.background.join(flight_key, THE_DAEMON.waiter, lambda _: behind())

    async def ahead(self, request: Request) -> Served:
        """Serve a request of THE_DAEMON behind all other work, and wait for it.

        Raises the errors of Compile, and SERVER_DRAINING once ``end_behind`` was called.
        """
        if self._ends:
            raise errors.server_draining()
        key = self._spec(request, None).key_for(request.sha256)
        flight_key, waiter = (key, request.skip_cache_lookup), request.terms.waiter
        ticket = self.background.join(
            flight_key, waiter, lambda _: self._serve_in_slot(request, flight_key)
        )
        return await ticket.wait()

    async def end_behind(self) -> None:
        """End the compiles that no caller waits for, and start no more."""
        self._ends = True
        await self.background.settle(0)

    async def _serve(self, request: Request) -> Served:
        """Serve what takes more than a look into memory."""
        budget = self.cache.wait_budget()
        served = await self._find(request, budget)
        if isinstance(served, Work):
            await self._confirm(request)
            served = await self._compiled(served, request)
        else:
            request.terms.release()
        if request.accept_host_file and not served.host_file:
            # The host store may have it by now, or be filled. It may have other bytes, too.
            mapped = await self.cache.host_file(served.artifact.key, budget)
            if mapped and mapped[0].sha256 == served.artifact.sha256:
                return served._replace(host_file=mapped[1])
        return served

    async def _find(self, request: Request, budget: WaitBudget) -> Served | Work:
        """Look the artifact up; if no tier has it, return what there is to compile."""
        if request.hits_only and (request.wasm or request.skip_cache_lookup):
            raise errors.role_missing("compile", "upload a module, or have it compiled again")
        module = None if request.sha256 else await self._admit(request)
        uploaded, sha256 = module is not None, request.sha256
        spec = self._spec(request, module.kind if module else None)
        if served := await self._look_up(spec, request, budget):
            return served
        if module is None and (found := await self.cache.get_module(sha256, budget)):
            module, _ = found
            # Only the module tells whether it is a component. For a component, a request that
            # names no engine may mean another engine than the default.
            usual, spec = spec, self._spec(request, module.kind)
            if spec.fingerprint != usual.fingerprint and (
                served := await self._look_up(spec, request, budget)
            ):
                return served
        if request.hits_only:
            raise errors.role_missing("compile", "compile the module: no cache holds its artifact")
        if module is None:
            raise errors.module_not_loaded(sha256)
        module = self._copies.setdefault(sha256, module)
        return Work(module, uploaded, spec, request.skip_cache_lookup, budget)

    async def _look_up(
        self, spec: CompileSpec, request: Request, budget: WaitBudget
    ) -> Served | None:
        """Return what a tier has: the optimised artifact, else the fast one if that will do."""
        if request.skip_cache_lookup:
            return None
        fast, optimised = self._fast(spec, request), spec.key_for(request.sha256)
        # It was missing a moment ago: then a hit of fast code ends at memory.
        missing = self._pauses(optimised) and not self.cache.peek(optimised)
        for each in filter(None, (fast, spec) if missing else (spec, fast)):
            key, served = each.key_for(request.sha256), None
            if request.accept_host_file and (mapped := await self.cache.host_file(key, budget)):
                served = Served(mapped[0], mapped[2], host_file=mapped[1])
            elif found := await self.cache.get(key, budget, request.accept_encodings):
                served = Served(*found)
            if served:
                if each is fast:
                    if not missing:
                        self._pause(optimised, _MISSING_S)
                    if not request.hits_only:
                        self.behind(request.sha256, spec, request.terms.quota)
                return served
        return None

    async def _compiled(self, work: Work, request: Request) -> Served:
        """Return what a flight compiles: the fast artifact, where the caller accepts it."""
        if fast := self._fast(work.spec, request):
            try:
                return await self._fly(replace(work, spec=fast), request.terms, then=work)
            except WasmkilnError as failure:
                if failure.reason not in _MAY_SUCCEED_OPTIMISED:
                    raise
                about = {"module": work.module.sha256, "engine": fast.engine.id}
                why = {"reason": failure.reason.value, "cause": failure.message}
                log.info("fast code not made", **about, **why)
        return await self._fly(work, request.terms)

    async def _fly(self, work: Work, terms: Terms, *, then: Work | None = None) -> Served:
        """Join the flight that compiles the artifact, and wait for it.

        When the artifact is there, have that of ``then`` compiled behind, whether or not the
        caller still waits.
        """
        flight_key, engine_id = (work.key, work.recompile), work.spec.engine.id
        run = partial(self._compile, work)
        ticket = self._join(flight_key, engine_id, work.module, terms, run)

        def made(result: Served | Exception) -> None:
            if then and isinstance(result, Served):
                self.behind(work.module.sha256, then.spec, terms.quota, anew=then.recompile)

        ticket.on_end(made)
        served = await ticket.wait()
        return Served(served.artifact, Origin.JOINED_FLIGHT) if ticket.joined else served

    def _join(
        self, flight_key: Hashable, engine_id: str, module: Module, terms: Terms, work: Run[V]
    ) -> Ticket[V]:
        """Join a flight that works on ``module``, or begin it with ``work``.

        Whoever begins it has it in his quota, and the module counts as his until it ends. A
        caller alone may hold as many bytes as the queue of an engine. Raises COMPILE_QUEUE_FULL
        or QUOTA_EXCEEDED.
        """
        waiter, held_bytes = terms.waiter, wire.held_bytes(module.wasm)
        if flight_key in self.flights:
            ticket = self.flights.join(flight_key, waiter, work)
        else:
            if self.in_progress.room(waiter.caller) <= 0:
                raise errors.modules_held(engine_id, self.in_progress.total)
            terms.quota.compile()
            ticket = self.flights.join(flight_key, waiter, work, terms.quota)
            self.in_progress.add(waiter.caller, held_bytes)
            ticket.on_end(lambda _: self.in_progress.add(waiter.caller, -held_bytes))
        terms.release()
        return ticket

    async def _compile(self, work: Work, waiters: Waiters) -> Served:
        """Do the work of a flight."""
        # Another flight of this key may have ended since the caller looked. Without this
        # second look, that interleaving would compile the same module twice.
        if found := await self._stored_here(work):
            return found
        async with self.fleet.claim(work.key, work.budget, alone=work.recompile) as claim:

            async def still_needed(queued_s: float) -> bool:
                if queued_s > _RECHECK_QUARANTINE_AFTER_S:
                    await self.quarantine.check(work.key, work.budget)
                stored = not work.recompile and self.cache.peek(work.key)
                return not stored and await claim.take()

            while True:
                async with self.quarantine.watch(work.key, work.spec, work.budget):
                    code = await self.engines.compile(
                        *(work.spec, work.module, waiters, self.metrics),
                        ready=still_needed,
                        unless=claim.stored,
                    )
                if isinstance(code, CompiledCode):
                    return await self._store(work, code, waiters)
                if code is not None:
                    claim.failed()
                    break
                # The artifact is stored, or another daemon compiles it. After a few waits the
                # claim waits for other daemons no more, so this loop ends.
                if found := await self._stored_here(work):
                    return found
                if await claim.wait_for_others():
                    if stored := await self.cache.get(work.key, work.budget):
                        return Served(*stored)
                    # It cannot be used. Without this, each look would find it again.
                    claim.ignore_others()
        # The claim has ended, so asking other engines now blocks neither a worker nor another
        # daemon.
        raise await code()

    async def _stored_here(self, work: Work) -> Served | None:
        if work.recompile or not self.cache.peek(work.key):
            return None
        found = await self.cache.get(work.key, work.budget)
        return Served(*found) if found else None

    async def _store(self, work: Work, code: CompiledCode, waiters: Waiters) -> Served:
        key, made, said = (work.module.sha256, work.module.kind, work.spec), code.code, code.result
        packed = made.sha256, made.size_bytes, made.frames
        imports = tuple(model.ExternType(*row) for row in said.imports)
        exports = tuple(model.ExternType(*row) for row in said.exports)
        types = imports, exports, said.types_truncated
        artifact = Artifact(*key, *packed, said.seconds, *types, compatibility=said.compatibility)
        artifact = self.sealer.seal(artifact)
        if work.uploaded:
            # The engine accepted the module, which is all that Load would have asked.
            await self._put(work.module)
        self.cache.put(artifact)
        self._paused.pop(artifact.key, None)
        stored_bytes = artifact.size_bytes + (work.module.size_bytes if work.uploaded else 0)
        waiters.quota.stored(stored_bytes)
        return Served(artifact, Origin.COMPILED, code.queue_time_s)

    async def _put(self, module: Module) -> None:
        """Store a module; read a small one from its file first."""
        if isinstance(module.wasm, Spooled) and module.size_bytes <= _KEPT_IN_FILE_BYTES:
            module = replace(module, wasm=await module.wasm.read(0, module.size_bytes))
        self.cache.put(module)

    async def _behind(self, request: Request, flight_key: Hashable) -> Served:
        """Have optimised code made; note how that ended."""
        about, outcome = {"module": request.sha256, "engine": request.engine}, "dropped"
        began_s = time.monotonic()
        try:
            served = await self._serve_in_slot(request, flight_key)
            origin, seconds = served.origin, round(time.monotonic() - began_s, 3)
            outcome = "compiled" if origin is Origin.COMPILED else "found"
            log.info("optimised artifact ready", origin=origin.value, seconds=seconds, **about)
            return served
        except WasmkilnError as failure:
            reason, cause = failure.reason, failure.message
            if reason is not Reason.SERVER_DRAINING:
                outcome = "failed"
                log.info("optimised artifact not made", reason=reason.value, cause=cause, **about)
            if outcome == "failed" and reason is not Reason.QUOTA_EXCEEDED:
                # Of a quota that is used up, another caller may have it made.
                self._pause(flight_key, _FAILED_S)
            raise
        finally:
            self.metrics.count("compiled_behind", outcome)

    async def _serve_in_slot(self, request: Request, flight_key: Hashable) -> Served:
        """Serve the daemon's own request in a slot; note how it ended, as calls do for theirs."""
        async with self._turn:  # One of each namespace asks at a time, so that they take turns.
            await self.slots.acquire()
        began_s, origin, reason = time.monotonic(), "", ""
        try:
            served = await self._serve(request)
            origin = "" if served.origin in model.LOCAL_HITS else served.origin.value
            return served
        except WasmkilnError as failure:
            reason = failure.reason.value
            raise
        finally:
            self.slots.release()
            if origin or reason:
                about = request.sha256, request.engine, origin, reason
                self.metrics.compile_ended(*about, time.monotonic() - began_s)
            if self._ends:
                # Without this, a job that runs would delay the end of the daemon.
                self.flights.release(flight_key)

    async def _admit(self, request: Request) -> Module:
        """Put the module's digest in place of its bytes; hash a large one in a thread."""
        wasm, (limit_bytes, limit) = request.wasm, self._limit(request.terms)
        beginning = (
            await wasm.read(0, _BEGINNING) if isinstance(wasm, Spooled) else wasm[:_BEGINNING]
        )
        large = HASH_INLINE_BYTES < len(wasm) <= limit_bytes
        sent = wasm, beginning, limit_bytes, limit
        module = await asyncio.to_thread(admit, *sent) if large else admit(*sent)
        request.sha256, request.wasm = module.sha256, b""
        return self._copies.setdefault(module.sha256, module)

    def _limit(self, terms: Terms) -> tuple[int, str]:
        """Return how large a module may be, and what says so."""
        of_rule = terms.module_bytes
        return (of_rule, "policy") if of_rule else (self.module_bytes(), _SETTING)

    def _spec(self, request: Request, kind: Kind | None) -> CompileSpec:
        wishes = request.target, request.cpu, request.settings
        if shown := request.compatibility:
            caller = request.terms.waiter.caller
            return self.engines.fitting(shown, caller, request.engine, *wishes)
        return self.engines.spec(self.engines.choose(request.engine, kind), *wishes)

    async def _confirm(self, request: Request) -> None:
        """Compare code for the caller's engine with what that engine shows, once."""
        if not (shown := request.compatibility):
            return
        fit, terms = self.engines.fits.get(shown), request.terms
        if not (fit and fit.made):
            confirm = partial(self.engines.confirm, shown, terms.waiter.caller)
            await self.flights.join(("fits", shown), terms.waiter, confirm, terms.quota).wait()

    def _fast(self, spec: CompileSpec, request: Request) -> CompileSpec | None:
        """Return the spec of the fast compiler, if the caller accepts it and there is one.

        Not for what an engine shows: fast code loads where its settings choose that.
        """
        accepts = request.accept_fast and not request.compatibility
        return self.engines.fast(spec, request.settings) if accepts else None

    def _pauses(self, what: Hashable) -> bool:
        return time.monotonic() < self._paused.get(what, 0.0)

    def _pause(self, what: Hashable, seconds: float) -> None:
        self._paused.pop(what, None)
        if len(self._paused) >= _MAX_PAUSES:
            del self._paused[next(iter(self._paused))]
        self._paused[what] = time.monotonic() + seconds

    def _key_of(self, wanted: CacheKey | Request) -> CacheKey:
        if isinstance(wanted, CacheKey):
            return wanted
        return self._spec(wanted, None).key_for(wanted.sha256)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The services of one namespace: nothing of another's is reachable from here.

    - ``tally``: how often each artifact was served since ``usage`` looked.
    """

    compiler: Compiler
    quarantine: Quarantine
    pins: Pins
    tally: Counter[tuple[str, CompileSpec]]


def admit(wasm: model.Wasm, beginning: bytes, limit_bytes: int, limit: str = _SETTING) -> Module:
    """Check size and preamble of ``wasm``. Raises NOT_WASM and MODULE_TOO_LARGE.

    One that is in a file is not read here, and was hashed as it came.
    """
    if not (kind := _KINDS.get(beginning[:8])):
        what = "these bytes are not a WebAssembly binary, which begins with \\0asm and its version"
        what += ": they are empty, already compiled, or something else"
        if beginning.lstrip().startswith((b"(", b";;")):
            what = "these bytes are WebAssembly text: convert them to a binary first, with wat2wasm"
        raise errors.not_wasm(what)
    if len(wasm) > limit_bytes:
        raise errors.module_too_large(len(wasm), limit_bytes, limit)
    sha256 = wasm.sha256 if isinstance(wasm, Spooled) else hashlib.sha256(wasm).hexdigest()
    return Module(sha256, kind, wasm)


def check_sha256(digest: str, field: str) -> str:
    """Return ``digest`` if it is 64 lowercase hexadecimal digits. Raises INVALID_REQUEST."""
    if not model.SHA256_HEX.fullmatch(digest):
        expected = "a SHA-256 as 64 lowercase hexadecimal digits"
        raise errors.invalid_request(f"{field} must be {expected}", field)
    return digest
