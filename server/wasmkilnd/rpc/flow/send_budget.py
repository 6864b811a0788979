"""The budget for artifacts that answers keep in memory while their callers read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from wasmkilnd import errors
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import Artifact, TrafficLimits
from wasmkilnd.reloadable import Reloadable

LEAST_PACE = 256 * 1024
"""Bytes per second that callers have to read while another caller waits for room."""
_MOST_SERVED = 16  # Waiting calls for which one look makes room.


@dataclass(slots=True, eq=False)
class Waiting:
    """A call that waits for room."""

    caller: str
    artifact: Artifact
    size_bytes: int
    """What the artifact adds to the memory in use: nothing if the memory tier has it."""
    woken: asyncio.Future[None]


class SendBudget:
    """Admits answers while their artifacts fit into a number of bytes. For one event loop.

    An artifact counts once, however many answers send it, for the caller that has read it
    longest. One that the memory tier holds costs nothing. A caller may hold as much as it
    leaves free. Other calls wait, with artifacts of at most as many bytes again.
    """

    def __init__(
        self, limits: Reloadable[TrafficLimits], in_memory: Callable[[Artifact], bool]
    ) -> None:
        """``in_memory`` tells whether the memory tier holds an artifact now."""
        self.total_bytes = 0
        """The size of all artifacts that are being sent, those in the memory tier included."""
        self._limits = limits
        self._in_memory = in_memory
        self._answers: dict[Artifact, dict[str, int]] = {}
        self._waiting: dict[Waiting, None] = {}
        self._waiting_bytes = FairShare(self._limit)

    @property
    def waiting(self) -> Iterable[Waiting]:
        """Calls that wait for room, in the order in which they came."""
        return self._waiting

    async def enter(self, caller: str, artifact: Artifact) -> None:
        """Count an answer until ``leave``, once there is room. Raises COMPILE_QUEUE_FULL."""
        if not self._has_room(caller, artifact):
            await self._wait(caller, artifact)
        callers = self._answers.setdefault(artifact, {})
        if not callers:
            self.total_bytes += artifact.size_bytes
        callers[caller] = callers.get(caller, 0) + 1

    def leave(self, caller: str, artifact: Artifact) -> None:
        """Stop counting an answer, and wake the calls for which there is room now."""
        callers = self._answers[artifact]
        callers[caller] -= 1
        if not callers[caller]:
            del callers[caller]
        if not callers:
            del self._answers[artifact]
            self.total_bytes -= artifact.size_bytes
        self.wake()

    def wake(self) -> None:
        """Let the calls go on for which there is room now."""
        if not self._waiting:
            return
        share = self._share(self.payers())
        for waiting in self._waiting:
            if self._fits(waiting.caller, waiting.artifact, share) and not waiting.woken.done():
                waiting.woken.set_result(None)
                share.add(waiting.caller, waiting.size_bytes)

    def payers(self) -> dict[Artifact, str]:
        """Return the artifacts that only answers keep in memory, and the caller each counts for."""
        return {
            artifact: next(iter(callers))
            for artifact, callers in self._answers.items()
            if not self._in_memory(artifact)
        }

    def too_slow(self, paces: Mapping[Artifact, float]) -> list[Artifact]:
        """Return artifacts that are read too slowly while calls wait for their room.

        ``paces`` are bytes per second. No more are returned than the waiting calls need, those
        of the caller that holds most first, and of these the slowest.
        """
        payers = self.payers()
        share = self._share(payers)
        candidates = sorted(
            payers, key=lambda artifact: (-share.held(payers[artifact]), paces[artifact])
        )
        found: list[Artifact] = []
        for waiting in islice(self._waiting, _MOST_SERVED):
            if not share.fits(waiting.caller, waiting.size_bytes):
                for artifact in candidates:
                    if paces[artifact] < _least_pace(payers[artifact], waiting.caller, share):
                        candidates.remove(artifact)
                        found.append(artifact)
                        share.add(payers[artifact], -artifact.size_bytes)
                        break
            if share.fits(waiting.caller, waiting.size_bytes):
                share.add(waiting.caller, waiting.size_bytes)
        return found

    def _limit(self) -> int:
        return self._limits.current.send_pinned_bytes

    def _share(self, payers: Mapping[Artifact, str]) -> FairShare:
        share = FairShare(self._limit)
        for artifact, caller in payers.items():
            share.add(caller, artifact.size_bytes)
        return share

    def _has_room(self, caller: str, artifact: Artifact) -> bool:
        # The common case: even one caller that held everything would leave as much free.
        if 2 * (self.total_bytes + artifact.size_bytes) <= self._limit():
            return True
        return self._fits(caller, artifact, self._share(self.payers()))

    def _fits(self, caller: str, artifact: Artifact, share: FairShare) -> bool:
        """Return whether an answer may begin. One alone may, however large."""
        if artifact in self._answers or not share.total:
            return True
        if self._in_memory(artifact):
            # The memory tier may have dropped artifacts since their answers began. While these
            # are above the limit no answer begins, for the tier may drop its artifact too.
            return share.free >= 0
        return share.fits(caller, artifact.size_bytes)

    async def _wait(self, caller: str, artifact: Artifact) -> None:
        size_bytes = 0 if self._in_memory(artifact) else artifact.size_bytes
        if self._waiting and self._waiting_bytes.room(caller) < size_bytes:
            raise errors.sending_too_much(self.total_bytes)
        loop = asyncio.get_running_loop()
        waiting = Waiting(caller, artifact, size_bytes, loop.create_future())
        self._waiting[waiting] = None
        self._waiting_bytes.add(caller, size_bytes)
        try:
            async with asyncio.timeout(self._limits.current.caller_timeout_s):
                await waiting.woken
                while not self._has_room(caller, artifact):  # Another call took the room.
                    waiting.woken = loop.create_future()
                    await waiting.woken
        except TimeoutError:
            raise errors.sending_too_much(self.total_bytes) from None
        finally:
            del self._waiting[waiting]
            self._waiting_bytes.add(caller, -size_bytes)


def _least_pace(payer: str, waiting: str, share: FairShare) -> float:
    """Return how fast ``payer`` has to read while a call of ``waiting`` waits."""
    if payer == waiting:
        return 1.0  # Only answers of which nothing is read make room for the same caller.
    return LEAST_PACE if share.held(payer) > share.held(waiting) else 0.0
