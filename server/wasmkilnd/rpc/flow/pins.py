"""Artifacts that answers on their way keep in memory, whatever the cache forgets meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import Artifact, TrafficLimits
from wasmkilnd.reloadable import Reloadable


@dataclass(slots=True, eq=False)
class Waiting:
    """A call that waits for room."""

    caller: str
    size_bytes: int
    """What it adds to what is held."""
    since_s: float
    turn: asyncio.Future[None]


class Pins:
    """Lets answers begin within a budget of bytes. For one event loop.

    Each artifact counts once, however many answers send it, for the caller that has
    sent it longest; one that the memory tier holds as well costs nothing. Calls that
    wait hold their artifacts too, so as much again may wait, and no more.
    """

    def __init__(
        self, limits: Reloadable[TrafficLimits], in_memory: Callable[[Artifact], bool]
    ) -> None:
        """``in_memory`` tells what the memory tier holds now."""
        self.total_bytes = 0
        """Of all artifacts that are being sent."""
        self._limits = limits
        self._in_memory = in_memory
        self._answers: dict[Artifact, dict[str, int]] = {}
        self._waiting: dict[Waiting, Artifact] = {}
        self._waiting_bytes = FairShare(self._limit)

    @property
    def waiting(self) -> Iterable[Waiting]:
        """Calls that wait for room, the first that came first."""
        return self._waiting

    async def take(self, caller: str, artifact: Artifact) -> None:
        """Count an answer until ``drop``, once there is room. Raises COMPILE_QUEUE_FULL."""
        if not self._fits(caller, artifact):
            await self._wait(caller, artifact)
        callers = self._answers.setdefault(artifact, {})
        if not callers:
            self.total_bytes += artifact.size_bytes
        callers[caller] = callers.get(caller, 0) + 1

    def drop(self, caller: str, artifact: Artifact) -> None:
        """Note that an answer has ended."""
        callers = self._answers[artifact]
        callers[caller] -= 1
        if not callers[caller]:
            del callers[caller]
        if not callers:
            del self._answers[artifact]
            self.total_bytes -= artifact.size_bytes

    def payers(self) -> Mapping[Artifact, str]:
        """Return what is held for answers alone, and for which caller each counts."""
        return {
            artifact: next(iter(callers))
            for artifact, callers in self._answers.items()
            if not self._in_memory(artifact)
        }

    def ledger(self, payers: Mapping[Artifact, str]) -> FairShare:
        """Return who holds how much."""
        ledger = FairShare(self._limit)
        for artifact, caller in payers.items():
            ledger.add(caller, artifact.size_bytes)
        return ledger

    def wake(self) -> None:
        """Let those go on for whom there is room now."""
        if not self._waiting:
            return
        ledger = self.ledger(self.payers())
        for waiting, artifact in self._waiting.items():
            if self._has_room(waiting.caller, artifact, ledger) and not waiting.turn.done():
                waiting.turn.set_result(None)
                ledger.add(waiting.caller, artifact.size_bytes)

    def _limit(self) -> int:
        return self._limits.current.send_pinned_bytes

    def _fits(self, caller: str, artifact: Artifact) -> bool:
        # Nobody has to be looked at while no caller could hold more than is left free.
        if 2 * (self.total_bytes + artifact.size_bytes) <= self._limit():
            return True
        return self._has_room(caller, artifact, self.ledger(self.payers()))

    def _has_room(self, caller: str, artifact: Artifact, ledger: FairShare) -> bool:
        """Tell whether an answer may begin; one alone always may."""
        if artifact in self._answers or not ledger.total:
            return True
        if self._in_memory(artifact):
            # Unless what memory has forgotten since its answers began is too much already.
            return ledger.free >= 0
        return ledger.fits(caller, artifact.size_bytes)

    async def _wait(self, caller: str, artifact: Artifact) -> None:
        size_bytes = 0 if self._in_memory(artifact) else artifact.size_bytes
        if self._waiting and self._waiting_bytes.room(caller) < size_bytes:
            raise errors.sending_too_much(self.total_bytes)
        loop = asyncio.get_running_loop()
        waiting = Waiting(caller, size_bytes, loop.time(), loop.create_future())
        self._waiting[waiting] = artifact
        self._waiting_bytes.add(caller, size_bytes)
        try:
            async with asyncio.timeout(self._limits.current.caller_timeout_s):
                await waiting.turn
                while not self._fits(caller, artifact):  # Somebody was faster.
                    waiting.turn = loop.create_future()
                    await waiting.turn
        except TimeoutError:
            raise errors.sending_too_much(self.total_bytes) from None
        finally:
            del self._waiting[waiting]
            self._waiting_bytes.add(caller, -size_bytes)
