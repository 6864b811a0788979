"""What the tiers that daemons share have in common: Redis and the object store.

Nothing that they return is trusted. A value that does not verify is read once more, for a bit may
have changed on the way, and other bytes may be there by now. Then it is counted by its cause, and a
miss. Each tier says which are deleted, where this daemon may write.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import structlog

from wasmkilnd import model
from wasmkilnd.cache import value
from wasmkilnd.cache.value import Opened, ValueRejected
from wasmkilnd.errors import DoesNotFit, TierUnavailable, forget_frames
from wasmkilnd.model import Artifact, Module
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import Allowance, Breaker

T = TypeVar("T")
L = TypeVar("L", bound=Breaker)
Key: TypeAlias = value.Key

# More look-ups than this wait: answers would seem late because this daemon is busy.
READS_AT_ONCE = 8
# Moving a large value may take longer than a time-out, but no longer than this rate allows; a
# caller waits for a read, and nobody for a write.
READ_BYTES_PER_S, WRITTEN_BYTES_PER_S = 8 * 1024 * 1024, 1024 * 1024
# Below this, handing bytes to a thread costs more than checking them.
_INLINE_BYTES = 64 * 1024
# A fleet whose daemons do not trust each other's keys rejects every value for one of these. A
# writer to the tier can make up any number of reasons.
_LOGGED_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_LOGGED = 64
# Of these a verified signature, or a key's id, tells that nothing changed on the way.
_SURE = frozenset({Cause.STRANGER, Cause.REVOKED, Cause.TOO_OLD})

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(eq=False)
class SharedTier(ABC, Generic[L]):
    """Artifacts and modules of one namespace. For one event loop.

    Values are kept below ``prefix``, that of the namespace. Payloads larger than
    ``artifact_bytes`` or ``module_bytes`` are not read. The tier is read if it ``reads``, and
    anything in it changed if it ``writes``.

    Each method raises TierUnavailable if the tier fails, and no other error.
    """

    link: L
    prefix: str
    _sealer: Sealer
    _metrics: Metrics
    _: KW_ONLY
    artifact_bytes: Callable[[], int]
    module_bytes: Callable[[], int]
    is_pinned: model.IsPinned
    reads: bool = True
    writes: bool = True

    name = ""
    # Why the tier, which answers, takes no writes; empty while it takes them.
    write_refusal = ""

    def __post_init__(self) -> None:
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._logged = set[str]()

    async def get(self, key: Key, allowance: Allowance) -> Any:
        """Return what is under ``key``, verified.

        The time that moving a large value takes is added to ``allowance``, and the wait for this
        daemon's other look-ups.
        """
        began, outcome = time.perf_counter(), "error"
        with allowance.free():
            await self._reading.acquire()
        try:
            found = await self._read(key, allowance)
            outcome = "miss" if found is None else "hit"
            return found
        finally:
            self._reading.release()
            what = "module" if isinstance(key, str) else "artifact"
            self._metrics.tier_lookup(self.name, what, outcome, time.perf_counter() - began)

    async def put(self, what: Artifact | Module) -> None:
        """Store a value, unless one is there.

        Raise DoesNotFit for one that the tier does not take for its size.
        """
        began, outcome = time.perf_counter(), "error"
        try:
            await self._put(what)
            outcome = "ok"
        except DoesNotFit as failure:
            outcome, why = "too_large", str(failure)
            log.warning("value not shared: the tier does not take one of its size", why=why)
            raise
        finally:
            self._metrics.tier_store(self.name, outcome, time.perf_counter() - began)

    async def _read(self, key: Key, allowance: Allowance) -> Artifact | Module | None:
        """Return a value, verified; None if there is none, or no good one."""
        for enough in (_SURE, frozenset(Cause)):
            stored = None
            try:
                if (stored := await self._find(key)) is None:
                    return None
                return await self._open(key, stored, allowance)
            except ValueRejected as failure:
                forget_frames(failure)  # They hold the value, and this frame.
                rejected = failure
            if rejected.cause in enough:
                await self._discard(key, stored, rejected)
                break
        return None

    @abstractmethod
    async def _put(self, what: Artifact | Module) -> None:
        """Store a value, unless one is there."""

    @abstractmethod
    async def _find(self, key: Key) -> Any:
        """Return what is stored under ``key``, unverified; None if nothing is."""

    @abstractmethod
    async def _open(self, key: Key, stored: Any, allowance: Allowance) -> Artifact | Module | None:
        """Return the value, verified; None if it is too large. Raise ValueRejected."""

    @abstractmethod
    async def _discard(self, key: Key, stored: Any, rejected: ValueRejected) -> None:
        """Count a value that does not verify, and delete it unless it is to stay."""

    @property
    def refusal(self) -> str:
        """What the tier, which answers, refuses; empty if nothing."""
        return self.write_refusal and f"takes no writes: {self.write_refusal}"

    def check_writes(self) -> None:
        """Raise TierUnavailable if this daemon may only read."""
        if not self.writes:
            raise TierUnavailable(f"the mode of the tier {self.name} is read-only")

    def _is_too_large(self, opened: Opened, name: str) -> bool:
        """Return whether a value is above the limit: daemons with a higher one use it."""
        limit = self.artifact_bytes if isinstance(opened.what, Artifact) else self.module_bytes
        if too_large := opened.size_bytes > limit():
            log.info("stored value is larger than the limit", key=name)
        return too_large

    def _count_rejected(self, name: str, rejected: ValueRejected) -> None:
        cause, why = rejected.cause.value, rejected.why
        self._metrics.value_rejected(self.name, cause)
        is_told = why in self._logged or len(self._logged) >= _MAX_LOGGED
        if rejected.cause in _LOGGED_ONCE and not is_told:
            self._logged.add(why)
        tell = log.debug if rejected.cause in _LOGGED_ONCE and is_told else log.warning
        tell("stored value rejected", tier=self.name, key=name, cause=cause, why=why)


def module_of(key: Key) -> str:
    """Return the digest of the module that ``key`` is about."""
    return key if isinstance(key, str) else key.module_sha256


def ready(opened: Opened, start: int, end: int, data: value.Payload, begins: int) -> list[bytes]:
    """Return frames as the wire carries them; ``data`` is of the value from ``begins`` on."""
    view, frames = memoryview(data), opened.frames[start:end]
    stored = [view[one.offset - begins : one.ends - begins] for one in frames]
    run: Any = value.UNPACKERS.map if len(frames) > 1 else map
    return [*run(opened.ready, range(start, end), stored)]


async def in_thread(size_bytes: int, work: Callable[..., T], *args: Any) -> T:
    """Return what ``work`` returns, in a thread if it is about many bytes."""
    if size_bytes < _INLINE_BYTES:
        return work(*args)
    return await asyncio.to_thread(work, *args)
