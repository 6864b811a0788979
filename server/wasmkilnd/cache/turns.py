"""One compile in the whole fleet: daemons on one shared tier agree whose turn it is.

Who compiles holds a lease in the shared tier (:mod:`wasmkilnd.cache.leases`) that expires
unless it is renewed. It is taken when a worker is there, and not before: what stands in one
daemon's queue keeps none from compiling. The others look again and again until the artifact
is there, and take it. It is an agreement to save work, no lock that anything's truth depends
on: when in doubt a daemon compiles by itself, and at worst the same artifact is made twice.

Waits are measured by the server or by this daemon's monotonic clock. The time of day only tells
copies of old leases (:mod:`wasmkilnd.cache.holders`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from wasmkilnd.cache.claim import FleetClaim
from wasmkilnd.cache.leases import End, Leases
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey
from wasmkilnd.ports import Recorder

V = TypeVar("V")

_LAST_WORDS_S = 1.0

# These say nothing about the module.
_NOT_TRIED = frozenset(
    {Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING}
)


class Claim(Protocol):
    """What a daemon that is to compile something has to do with others. Never raises for a
    tier's sake.
    """

    async def stored(self) -> bool:
        """Wait while another is known to make the artifact; answer whether it is stored."""
        ...

    async def unless_stored(self, work: Coroutine[Any, Any, V]) -> V:
        """Answer what ``work`` answers. Raises DoneElsewhere, and cancels it, when another
        stores the artifact before ``begin`` is called.
        """
        ...

    async def begin(self) -> None:
        """Have others wait from now on. Raises DoneElsewhere if it is stored, or another's turn."""
        ...

    def insist(self) -> None:
        """Begin whatever the others do: what they stored is of no use."""
        ...

    def failed(self) -> None:
        """Tell the others that the module does not compile."""
        ...


class Turns(Protocol):
    """Tells daemons apart that would compile the same thing at the same time."""

    def take(self, key: CacheKey) -> AbstractAsyncContextManager[Claim]:
        """Answer the claim to compile ``key``, which ends as the context does."""
        ...

    async def close(self) -> None:
        """Let go of every turn; never raises."""
        ...


class EveryTurn:
    """For a daemon without a shared tier: it is always its turn."""

    @contextlib.asynccontextmanager
    async def take(self, key: CacheKey) -> AsyncIterator[Claim]:
        """As Turns."""
        yield _Alone()

    async def close(self) -> None:
        """As Turns."""


class _Alone:
    """A claim that nobody contests."""

    async def stored(self) -> bool:
        return False

    async def unless_stored(self, work: Coroutine[Any, Any, V]) -> V:
        return await work

    async def begin(self) -> None:
        return None

    def insist(self) -> None:
        return None

    def failed(self) -> None:
        return None


class FleetTurns:
    """Turns by leases. For one event loop."""

    def __init__(
        self, leases: Leases, recorder: Recorder, *, patience_s: Callable[[], float]
    ) -> None:
        """A holder that lives is waited for no longer than ``patience_s`` says by then; one that
        dies is replaced when its lease is over. Who is no daemon of the fleet is not waited for.
        """
        self._leases = leases
        self._recorder = recorder
        self._patience_s = patience_s
        self._under_way: set[asyncio.Task[None]] = set()
        self._watching: set[FleetClaim] = set()

    @contextlib.asynccontextmanager
    async def take(self, key: CacheKey) -> AsyncIterator[Claim]:
        """As Turns."""
        claim = FleetClaim(
            key,
            self._leases,
            self._recorder,
            self._patience_s,
            self._watching,
            self._behind,
        )
        end = End.GIVEN_UP
        try:
            yield claim
            end = End.MADE
        except WasmkilnError as failure:
            if failure.reason not in _NOT_TRIED:
                end = End.FAILED
            raise
        finally:
            claim.end(end)

    async def close(self) -> None:
        """As Turns."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` behind the caller's back."""

        async def unless_down() -> None:
            with contextlib.suppress(TierUnavailable):
                await work

        task = asyncio.create_task(unless_down())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
