"""Opens the host store, the tier of files that processes on this host map, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from wasmkilnd.cache.guarded_host import GuardedHost
from wasmkilnd.cache.host.entry import HeaderOf
from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.host.tier import HostTier
from wasmkilnd.cache.null_tier import NullHost
from wasmkilnd.cache.observed import ObservedHost
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.model import HostStatus, IsPinned
from wasmkilnd.ports import HostStore, Recorder
from wasmkilnd.signing.sealer import Sealer

# As long as the reply that caused the write is being sent: see WriteBehind.
_WRITE_HEAD_START_S = 0.05
# How long a disk may delay the start of the daemon, or a reload.
_PATIENCE_S = 2.0


@dataclass(kw_only=True, eq=False, repr=False)
class OpenHost:
    """The host store, and what comes and goes with it."""

    store: HostStore
    write_behind: WriteBehind
    guarded: GuardedHost | None = None
    tier: HostTier | None = None
    """None if the store is switched off."""
    engines: Callable[[], Mapping[str, Any]] = dict
    """Returns what the daemon serves, for clients that compute fingerprints themselves."""
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_on(self) -> bool:
        """Whether there is a host store."""
        return self.tier is not None

    @property
    def trouble(self) -> str:
        """Why the store cannot be used; empty if it can, or is off."""
        return self.tier.trouble if self.tier else ""

    async def start(self) -> None:
        """Make the store ready, in the background if its disk takes long; never raise."""
        if self.tier:
            await self._briefly(self.tier.start())
        await self.write_engines()

    async def write_engines(self) -> None:
        """Write ``engines`` where clients look for it, as ``start``; never raise."""
        if self.tier:
            await self._briefly(self.tier.write_engines(self.engines()))

    async def _briefly(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.wait((task,), timeout=_PATIENCE_S)

    def resize(self, limit_bytes: int) -> None:
        """Hold at most ``limit_bytes`` from now on."""
        if self.tier:
            self.tier.resize(limit_bytes)

    def status(self) -> HostStatus:
        """Return whether it can be used, how many writes wait, and how many were given up."""
        skipped = self.guarded.skipped if self.guarded else 0
        return HostStatus(
            self.write_behind.pending,
            self.write_behind.dropped + skipped,
            is_on=self.is_on,
            up=self.guarded is not None and self.guarded.is_well and not self.trouble,
        )

    async def flush(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``."""
        await self.write_behind.flush(timeout_s)

    async def close(self) -> None:
        """Drop the writes that wait, and close, without waiting; see flush."""
        for task in self._under_way:
            task.cancel()
        await self.write_behind.close(0)
        await self.store.close()


def open_host(
    options: HostOptions,
    sealer: Sealer,
    recorder: Recorder,
    marks: Marks,
    *,
    header_of: HeaderOf,
    wait_s: float,
    artifact_bytes: Callable[[], int],
    write_queue_bytes: Callable[[], int],
    is_pinned: IsPinned,
    carry: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> OpenHost:
    """Open the host store; none if it may hold no bytes.

    ``header_of`` returns the header that clients get with an artifact. ``wait_s`` bounds each
    look-up, apart from reading large artifacts. ``is_pinned`` returns whether a module is pinned.
    For ``carry`` see WriteBehind.
    """
    if not options.limit_bytes:
        null = NullHost()
        writes = WriteBehind(null, write_queue_bytes, null.always_ready)
        return OpenHost(store=null, write_behind=writes)
    tier = HostTier(
        options,
        sealer,
        recorder,
        header_of=header_of,
        marks=marks,
        artifact_bytes=artifact_bytes,
        is_pinned=is_pinned,
    )
    guarded = GuardedHost(tier, wait_s)
    store = ObservedHost(guarded, recorder)

    async def always_ready() -> None:
        """Return at once: a write to a disk that fails is dropped, not kept for later."""

    return OpenHost(
        store=store,
        write_behind=WriteBehind(
            store, write_queue_bytes, always_ready, _WRITE_HEAD_START_S, carry=carry
        ),
        guarded=guarded,
        tier=tier,
    )
