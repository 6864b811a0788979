"""Requests that arrive: how much of them the daemon holds, and for how long.

gRPC takes a request in as fast as its caller sends it, and tells nobody how much of
it is there. So what has not arrived whole may hold as much as a message can be large.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpc import aio

from wasmkilnd import errors
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import TrafficLimits
from wasmkilnd.reloadable import Reloadable

Context = Any  # a grpc.aio.ServicerContext; grpcio ships no types

# A request that is there within this time was never held for long: all of those together
# are no more than the network brings in this time. Most are there at once.
_QUICK_S = 0.1


@dataclass(slots=True, eq=False)
class _Read:
    """A request that has not arrived yet."""

    caller: str
    task: asyncio.Task[Any]
    since_s: float
    patient: bool
    held_bytes: int = 0
    refusal: errors.WasmkilnError | None = None


class Receiver:
    """Reads requests within a budget of bytes. For one event loop.

    Half of the budget is for what arrives slowly, and half for what has arrived and
    is looked at. When the first is full, the slow one of the caller that holds most
    is refused; when the second is, further requests are not read before there is
    room, which flow control tells their callers.
    """

    def __init__(self, limits: Reloadable[TrafficLimits], message_bytes: int) -> None:
        """Take in messages of up to ``message_bytes``."""
        self._arriving = FairShare(self._half)
        self._arrived = FairShare(self._half)
        self._message_bytes = message_bytes
        self._limits = limits
        self._reads: dict[_Read, None] = {}
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held_bytes(self) -> int:
        """What requests hold, those that arrive slowly counted in full."""
        return self._arriving.total + self._arrived.total

    async def read(
        self, context: Context, caller: str, *, patient: bool = False
    ) -> tuple[bytes | None, Callable[[], None]]:
        """Return the next message, None after the last, and what lets go of its bytes.

        With ``patient`` it may come as late as it likes. Raises COMPILE_QUEUE_FULL.
        """
        while self._arrived.room(caller) <= 0:
            await self._wait(caller)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are read in tasks")
        read = _Read(caller, task, loop.time(), patient)
        self._reads[read] = None
        if self._timer is None:
            self._timer = loop.call_later(_QUICK_S, self._sweep)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if read.refusal is None:
                raise
            task.uncancel()
            raise read.refusal from None
        finally:
            del self._reads[read]
            self._arriving.add(caller, -read.held_bytes)
        if message is aio.EOF:
            return None, _nothing
        return message, self.hold(caller, len(message))

    def hold(self, caller: str, size_bytes: int) -> Callable[[], None]:
        """Count what a request that has arrived costs; return what lets go of it."""
        self._arrived.add(caller, size_bytes)
        held = [size_bytes]

        def release() -> None:
            if held:
                self._arrived.add(caller, -held.pop())
                self._wake()

        return release

    def _half(self) -> int:
        return max(self._limits.current.receive_bytes // 2, self._message_bytes)

    async def _wait(self, caller: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        try:
            await turn
        finally:
            if not turn.done() or turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove((caller, turn))

    def _wake(self) -> None:
        for _ in range(len(self._waiting)):
            caller, turn = self._waiting.popleft()
            if turn.done():
                continue
            if self._arrived.room(caller) > 0:
                turn.set_result(None)
            else:
                self._waiting.append((caller, turn))

    def _sweep(self) -> None:
        """Count what turned out to be slow, and end what is too slow."""
        loop = asyncio.get_running_loop()
        now, timeout_s = loop.time(), self._limits.current.caller_timeout_s
        for read in list(self._reads):
            if read.refusal:
                continue
            if not read.held_bytes and now - read.since_s >= _QUICK_S:
                self._admit(read)
            if not read.patient and now - read.since_s >= timeout_s:
                self._refuse(read, errors.request_too_slow(timeout_s))
        self._timer = loop.call_later(_QUICK_S, self._sweep) if self._reads else None

    def _admit(self, read: _Read) -> None:
        if self._arriving.room(read.caller) < self._message_bytes:
            victim = self._victim(read)
            self._refuse(victim, errors.receiving_too_much(self._arriving.total))
            if victim is read:
                return
        read.held_bytes = self._message_bytes
        self._arriving.add(read.caller, self._message_bytes)

    def _victim(self, newcomer: _Read) -> _Read:
        """Return who yields: whoever has all the time, then who holds most, the oldest first."""
        slow = [read for read in self._reads if read.held_bytes and not read.refusal]
        patient = [read for read in slow if read.patient]
        if patient:
            return patient[0]
        heaviest = self._arriving.heaviest()
        if self._arriving.held(heaviest) > self._arriving.held(newcomer.caller) + (
            self._message_bytes
        ):
            return next(read for read in slow if read.caller == heaviest)
        return newcomer

    def _refuse(self, read: _Read, refusal: errors.WasmkilnError) -> None:
        self._arriving.add(read.caller, -read.held_bytes)  # Its bytes go with its call.
        read.held_bytes = 0
        read.refusal = refusal
        read.task.cancel()


def _nothing() -> None:
    """Let go of nothing."""
