"""Reads requests, and limits how much of them the daemon holds while they arrive.

gRPC takes a request in as fast as its caller sends it, and does not tell how much of it has
arrived. So a request that has not arrived whole counts as large as a message may be.
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
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import TrafficLimits
from wasmkilnd.reloadable import Reloadable

Context = Any  # a grpc.aio.ServicerContext; grpcio ships no types

# A request that arrives within this time is not counted until then: all such together are no
# more than the network brings in this time. Most arrive at once.
_QUICK_S = 0.1


@dataclass(slots=True, eq=False)
class _Read:
    """A request that has not arrived yet."""

    caller: str
    task: asyncio.Task[Any]
    since_s: float
    patient: bool
    account: Account
    held_bytes: int = 0
    refusal: errors.WasmkilnError | None = None


@dataclass(slots=True)
class Held:
    """What a request that has arrived takes of the budget; a call releases it."""

    share: FairShare
    caller: str
    size_bytes: int
    wake: Callable[[], None]
    account: Account = UNLIMITED

    def add(self, size_bytes: int) -> None:
        """Count more bytes for the request."""
        self.share.add(self.caller, size_bytes)
        self.account.hold_more(size_bytes)
        self.size_bytes += size_bytes

    def __call__(self) -> None:
        """Stop counting. A second call does nothing."""
        if self.size_bytes:
            self.share.add(self.caller, -self.size_bytes)
            self.account.release(self.size_bytes)
            self.size_bytes = 0
            self.wake()


class Receiver:
    """Reads requests within a budget of bytes. For one event loop.

    Half of the budget is for requests that arrive slowly. When it is full, the oldest slow
    request of the caller that holds most is refused. The other half is for requests that have
    arrived and are looked at. When it is full, the daemon reads no further request before
    there is room, and HTTP/2's flow control holds their callers back.
    """

    def __init__(self, limits: Reloadable[TrafficLimits], message_bytes: int) -> None:
        """Accept messages of up to ``message_bytes``."""
        self._arriving = FairShare(self._half)
        self._arrived = FairShare(self._half)
        self._message_bytes = message_bytes
        self._limits = limits
        self._reads: dict[_Read, None] = {}
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held_bytes(self) -> int:
        """The size of all requests, where one that arrives slowly counts as ``message_bytes``."""
        return self._arriving.total + self._arrived.total

    async def read(
        self,
        context: Context,
        caller: str,
        *,
        patient: bool = False,
        account: Account = UNLIMITED,
    ) -> tuple[bytes | None, Held]:
        """Return the next message, None after the last, and a function that releases its bytes.

        With ``patient`` the message may take any time. Raises COMPILE_QUEUE_FULL, or
        QUOTA_EXCEEDED for what ``account`` may not hold.
        """
        while self._arrived.room(caller) <= 0:
            await self._wait(caller)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are read in tasks")
        read = _Read(caller, task, loop.time(), patient, account)
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
            self._stop_counting(read)
        if message is aio.EOF:
            return None, self.hold(caller, 0)
        return message, self.hold(caller, len(message), account)

    def hold(self, caller: str, size_bytes: int, account: Account = UNLIMITED) -> Held:
        """Count bytes for a request that has arrived. Raises QUOTA_EXCEEDED."""
        account.hold(size_bytes)
        self._arrived.add(caller, size_bytes)
        return Held(self._arrived, caller, size_bytes, self._wake, account)

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
        """Count requests that turn out to be slow, and refuse those that are too slow."""
        loop = asyncio.get_running_loop()
        now, timeout_s = loop.time(), self._limits.current.caller_timeout_s
        for read in list(self._reads):
            if read.refusal:
                continue
            if not read.held_bytes and now - read.since_s >= _QUICK_S:
                self._admit(read)
            elif not read.patient and now - read.since_s >= timeout_s:
                self._refuse(read, errors.request_too_slow(timeout_s))
        self._timer = loop.call_later(_QUICK_S, self._sweep) if self._reads else None

    def _admit(self, read: _Read) -> None:
        if self._arriving.room(read.caller) < self._message_bytes:
            victim = self._victim(read)
            self._refuse(victim, errors.receiving_too_much(self._arriving.total))
            if victim is read:
                return
        try:
            read.account.hold(self._message_bytes)
        except errors.WasmkilnError as refusal:
            self._refuse(read, refusal)
            return
        read.held_bytes = self._message_bytes
        self._arriving.add(read.caller, self._message_bytes)

    def _victim(self, newcomer: _Read) -> _Read:
        """Return the request to refuse: a patient one, else one of the caller that holds most."""
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
        self._stop_counting(read)  # gRPC frees its bytes when the call ends.
        read.refusal = refusal
        read.task.cancel()

    def _stop_counting(self, read: _Read) -> None:
        self._arriving.add(read.caller, -read.held_bytes)
        read.account.release(read.held_bytes)
        read.held_bytes = 0
