"""What the request path needs from the outside, and what each port promises."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    CompileSpec,
    Evicted,
    EvictScope,
    Kind,
    Module,
    Origin,
    Refusal,
    Strike,
    TierUsage,
)
from wasmkilnd.wait_budget import Allowance, WaitBudget
from wasmkilnd.waiters import Waiter, Waiters
from wasmkilnd.wire import Packed


class Tier(Protocol):
    """One level of cache.

    Safe for concurrent use from one event loop. A look-up that finds nothing
    answers None; one that could not look raises TierUnavailable: a failure is
    never passed off as a miss. What comes out was verified against the key that
    it was asked under. After a put returns, the entry may already be gone again
    (evicted, expired, too large to be kept), but never in part.
    """

    name: str

    async def get(self, key: CacheKey, allowance: Allowance | None = None) -> Artifact | None:
        """Return the artifact under ``key``. Raises TierUnavailable.

        ``allowance`` is told for how much longer than usual that may take.
        """
        ...

    async def put(self, artifact: Artifact) -> None:
        """Store ``artifact`` under its key, over what is there. Raises TierUnavailable."""
        ...

    async def get_module(self, sha256: str, allowance: Allowance | None = None) -> Module | None:
        """Return the module with this digest; as ``get``. Raises TierUnavailable."""
        ...

    async def put_module(self, module: Module) -> None:
        """Store ``module`` under its digest. Raises TierUnavailable."""
        ...

    async def has_module(self, sha256: str) -> bool:
        """Return whether the module is stored now, touching nothing. Raises TierUnavailable."""
        ...

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored now, touching nothing. Raises TierUnavailable."""
        ...

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return from what kinds of modules those of the artifacts were made that are there.

        Reads no more than it must. Raises TierUnavailable.
        """
        ...

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope`` that was stored before the call. Raises TierUnavailable."""
        ...

    def usage(self) -> TierUsage:
        """Return what the tier holds, without waiting; never raises."""
        ...

    async def close(self) -> None:
        """Let go of connections and memory; never raises."""
        ...


class Claim(Protocol):
    """A daemon's part in who compiles one artifact, in the whole fleet. Never raises for a
    tier's sake.

    The lease is taken when a worker is there: what only waits for one keeps no other daemon
    from compiling.
    """

    async def stored(self) -> None:
        """Return when another daemon has stored the artifact; for who waits for a worker."""
        ...

    async def take(self) -> bool:
        """Have other daemons wait until what is put is stored.

        Return False if the artifact is stored already, or another daemon makes it.
        """
        ...

    async def made_elsewhere(self) -> bool:
        """Wait while another daemon makes the artifact; return whether it is stored then."""
        ...

    def insist(self) -> None:
        """Have it made here, whatever other daemons do: what they stored is of no use."""
        ...

    def failed(self) -> None:
        """Tell the other daemons, now, that the module does not compile."""
        ...


class Cache(Protocol):
    """The tiers as one. No call raises for a tier's sake: a tier that fails is passed over, and
    so is one that would take longer than the call's budget of waiting has left.
    """

    def wait_budget(self) -> WaitBudget:
        """Return how long one call may wait for the shared tier in all, from now on."""
        ...

    def claim(
        self, key: CacheKey, budget: WaitBudget, *, contested: bool
    ) -> AbstractAsyncContextManager[Claim]:
        """Return this daemon's claim to compile ``key``; how the context ends, others hear.

        One that is not ``contested`` has nothing to do with other daemons.
        """
        ...

    async def get_local(self, key: CacheKey) -> Artifact | None:
        """Return the artifact if this daemon has it, and keep it in memory."""
        ...

    async def has_local(self, key: CacheKey) -> bool:
        """Return whether this daemon has the artifact, touching nothing."""
        ...

    async def get(self, key: CacheKey, budget: WaitBudget) -> tuple[Artifact, Origin] | None:
        """Return the artifact from the nearest tier that has it, and keep it nearer."""
        ...

    async def put(self, artifact: Artifact) -> None:
        """Store in memory now and in the shared tier behind the caller's back."""
        ...

    async def get_module(self, sha256: str, budget: WaitBudget) -> Module | None:
        """Return the module from the nearest tier that has it, and keep it nearer."""
        ...

    async def put_module(self, module: Module) -> None:
        """Store in memory now and in the shared tier behind the caller's back."""
        ...

    def restore_module(self, module: Module) -> None:
        """Have a module that this daemon holds stored in the shared tier again if it is gone
        from there, behind the caller's back.
        """
        ...

    async def missing(self, keys: Sequence[CacheKey], budget: WaitBudget) -> frozenset[CacheKey]:
        """Return which of ``keys`` no tier holds."""
        ...

    async def kinds_of(
        self, keys: Sequence[CacheKey], budget: WaitBudget
    ) -> Mapping[CacheKey, Kind]:
        """Return from what kinds of modules those of the artifacts were made that a tier has."""
        ...

    def held_in_memory(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module that this daemon's memory holds."""
        ...

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict from ``tier`` ("" for all); answer what went and which tiers did not answer."""
        ...


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """What came out of a compilation."""

    code: Packed
    compile_time_s: float
    queue_time_s: float
    imports: Sequence[Sequence[str]]
    """Each as module, name, kind, type."""
    exports: Sequence[Sequence[str]]
    types_truncated: bool


class Refused(Protocol):
    """A module that its engine does not compile."""

    async def explained(self) -> WasmkilnError:
        """Ask other engines, which takes a while, and return what the caller is told.

        Raises COMPILE_QUEUE_FULL or SERVER_DRAINING where one could not be asked, and
        CancelledError if nobody waits for the answer.
        """
        ...


class EngineWorker(Protocol):
    """A worker that is there to compile one module."""

    @property
    def queued_s(self) -> float:
        """How long the module waited for it."""
        ...

    async def compile(self) -> CompiledCode | Refused:
        """Compile the module, once. Raises the errors of Compile."""
        ...


class Engines(Protocol):
    """Every engine that is served.

    Safe for concurrent use from one event loop. Whatever a module does to an
    engine, only its own call fails, and with a WasmkilnError.
    """

    def choose(self, engine: str, kind: Kind | None) -> str:
        """Return the id of the engine that a request means.

        ``kind`` is None while only the module's digest is known. Raises
        ENGINE_UNKNOWN.
        """
        ...

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """Resolve a request's wishes. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""
        ...

    def worker(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        *,
        unless: Callable[[], Coroutine[Any, Any, None]],
    ) -> AbstractAsyncContextManager[EngineWorker | None]:
        """Wait for a worker in the turn that ``waiters`` gives, and have it for the context.

        It is None when ``unless`` returns before a worker is there. Raises the errors of
        Compile: what is known against the module, and what keeps it from getting a worker.
        """
        ...

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate in a worker, in the turn that ``waiters`` gives. Raises the errors of Load.

        ``watch`` is entered for a job that compiles to validate, once however many ask for it.
        """
        ...

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, waiters: Waiters | None
    ) -> float:
        """Return how long a caller would wait for a worker, 0 where one is free.

        ``waiters`` is that of the work which the caller would join; None for new work.
        """
        ...

    def forget(self, scope: EvictScope) -> None:
        """Forget what engines said of what ``scope`` names."""
        ...


class Verifier(Protocol):
    """Says who vouches for what comes from the shared tier.

    Safe for use from any thread, and never raises. Both checks are made of every
    value from the shared tier before anything else looks at it, and never of one from
    memory. ``verify`` believes ``artifact.sha256``, which the stamp vouches for: the
    bytes are hashed once, as they are stored.
    """

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return None if the attestation vouches for ``artifact`` under ``key``, else why not."""
        ...

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return None if a trusted key's ``stamp`` vouches for ``message``, else why not."""
        ...


class Sealer(Verifier, Protocol):
    """Binds artifacts to their keys, and stored values to those who stored them."""

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` with its attestation."""
        ...

    def stamp(self, message: bytes) -> bytes:
        """Return ``STAMP_BYTES`` by which others know who vouches for ``message``."""
        ...


class StrikeStore(Protocol):
    """Strikes against modules, shared with other daemons. Every method raises TierUnavailable."""

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        ...

    async def put(
        self, strike: Strike, ttl_s: float, budget: WaitBudget | None, age_s: float = 0.0
    ) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds.

        One that is ``age_s`` old is not stored if it was released since, or if what is there
        is as heavy. ``budget`` is that of the call that waits, None if none does.
        """
        ...

    async def ready(self) -> None:
        """Return when the store is believed to answer."""
        ...

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        ...

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, against all for an empty digest."""
        ...


class Recorder(Protocol):
    """Takes note of what happens. Safe from any thread, fast, and never raises."""

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """``what`` is ``artifact`` or ``module``; ``outcome`` ``hit``, ``miss`` or ``error``."""
        ...

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """``outcome`` is ``ok`` or ``error``."""
        ...

    def value_rejected(self, tier: str, cause: str) -> None:
        """A stored value did not verify and was deleted. ``cause`` is one of a small set."""
        ...

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """``outcome`` is ``ok`` or an error's reason in lower case."""
        ...

    def served(self, origin: Origin) -> None:
        """A Compile call was answered."""
        ...

    def flight_joined(self) -> None:
        """A caller shares another's compilation."""
        ...

    def fleet_turn(self, outcome: str) -> None:
        """A daemon waited for its turn to compile. ``outcome`` is one of a small set."""
        ...

    def abandoned(self, engine_id: str, stage: str) -> None:
        """Work was ended that nobody waited for. ``stage`` is ``queued`` or ``running``."""
        ...

    def quarantine_refused(self) -> None:
        """A compile was refused for what an earlier one did."""
        ...

    def worker_replaced(self, engine_id: str) -> None:
        """A worker died and a new one took its place."""
        ...
