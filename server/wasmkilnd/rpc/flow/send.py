"""Answers that are not read: how much of them the daemon holds, and for how long.

``write`` returns when gRPC may send a message, which is when its caller reads. Until
then gRPC holds a copy of it, one for each answer, and the answer holds its artifact.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from wasmkilnd import errors
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import Artifact, TrafficLimits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow.send_budget import SendBudget

log = structlog.get_logger("wasmkilnd.rpc")

Context = Any  # a grpc.aio.ServicerContext; grpcio ships no types
Cut = Callable[[bytes, int], Iterable[bytes]]

# A message is at most this part of what its caller may still hold: the first callers get
# whole frames, the last ones still something. Of 128 MiB some 640 get their part who
# read nothing.
_SHARE = 128
_LEAST_PIECE_BYTES = 16 * 1024
_SWEEP_S = 0.25
# Who waits for room may have that of an answer of which nothing was taken for so long.
_STALLED_S = 1.0
_MOST_ENDED = 128  # in one sweep


@dataclass(slots=True, eq=False)
class _Answer:
    """An answer on its way."""

    context: Context
    caller: str
    task: asyncio.Task[Any]
    artifact: Artifact | None
    unread_bytes: int = 0
    """Given to gRPC, and not known to be on its way."""
    since_s: float = 0.0
    """Since when."""
    taken_bytes: int = 0
    """Since ``counted_since_s``."""
    counted_since_s: float = 0.0
    """When it began, or when a call began to wait for room."""
    refusal: WasmkilnError | None = None
    parting: bool = False
    given_up: bool = False


class Sender:
    """Writes answers within a budget of bytes. For one event loop.

    Who reads is not held up by who does not: the more is held, the smaller are the
    pieces, and when nothing is left, those who read nothing make room.
    """

    def __init__(
        self,
        limits: Reloadable[TrafficLimits],
        abort: Callable[[Context, WasmkilnError], Awaitable[None]],
        close: Callable[[str], Awaitable[object]],
        in_memory: Callable[[Artifact], bool],
    ) -> None:
        """``abort`` ends a call with an error; ``close`` ends a peer's connection, if the
        caller does not take even that. ``in_memory`` tells what needs no room.
        """
        self._limits = limits
        self._unread = FairShare(lambda: limits.current.send_bytes)
        self._artifacts = SendBudget(limits, in_memory)
        self._abort = abort
        self._close = close
        self._answers: dict[_Answer, None] = {}
        self._wait_to_send: dict[_Answer, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def unread_bytes(self) -> int:
        """Copies that wait to be read."""
        return self._unread.total

    @property
    def pinned_bytes(self) -> int:
        """Artifacts that are being sent."""
        return self._artifacts.total_bytes

    async def send(
        self,
        context: Context,
        caller: str,
        messages: Iterable[bytes],
        *,
        cut: Cut | None = None,
        artifact: Artifact | None = None,
    ) -> None:
        """Send serialized messages.

        ``cut`` cuts one that is larger than wanted; ``artifact`` is what they keep in
        memory. Raises COMPILE_QUEUE_FULL, perhaps after having told the caller so.
        """
        if artifact:
            await self._artifacts.enter(caller, artifact)
        loop = asyncio.get_running_loop()
        answer = _Answer(context, caller, _current_task(), artifact, counted_since_s=loop.time())
        self._answers[answer] = None
        if self._timer is None:
            self._timer = loop.call_later(_SWEEP_S, self._sweep)
        try:
            for message in messages:
                piece_bytes = self._piece_bytes(caller) or await self._room(answer)
                if cut is None or len(message) <= piece_bytes:
                    await self._write(answer, message, loop.time())
                else:
                    for piece in cut(message, piece_bytes):
                        await self._write(answer, piece, loop.time())
        except asyncio.CancelledError:
            if answer.refusal is None:
                raise  # Its caller has gone.
            answer.task.uncancel()
            await self._part(answer, answer.refusal)
            raise answer.refusal from None
        finally:
            del self._answers[answer]
            self._unread.add(caller, -answer.unread_bytes)
            if artifact:
                self._artifacts.leave(caller, artifact)
            self._wake()

    async def _write(self, answer: _Answer, message: bytes, now: float) -> None:
        answer.unread_bytes, answer.since_s = len(message), now
        self._unread.add(answer.caller, len(message))
        await answer.context.write(message)
        # Not in a finally: what was not taken is held until the call has ended.
        self._unread.add(answer.caller, -len(message))
        answer.unread_bytes = 0
        answer.taken_bytes += len(message)
        if self._wait_to_send:
            self._wake()

    def _piece_bytes(self, caller: str) -> int:
        """Return how large a message to ``caller`` may be; 0 for none now."""
        piece_bytes = self._unread.room(caller) // _SHARE
        return piece_bytes if piece_bytes >= _LEAST_PIECE_BYTES else 0

    async def _room(self, answer: _Answer) -> int:
        try:
            while not (piece_bytes := self._piece_bytes(answer.caller)):
                turn = asyncio.get_running_loop().create_future()
                self._wait_to_send[answer] = turn  # It keeps its place if it waits again.
                await turn
            return piece_bytes
        finally:
            self._wait_to_send.pop(answer, None)

    def _wake(self) -> None:
        """Let those go on who wait and have room; whoever had not waits again."""
        free_bytes = self._unread.free
        for answer, turn in self._wait_to_send.items():
            if free_bytes < _SHARE * _LEAST_PIECE_BYTES:
                break
            piece_bytes = self._piece_bytes(answer.caller)
            if piece_bytes and not turn.done():
                turn.set_result(None)
                free_bytes -= piece_bytes

    def _sweep(self) -> None:
        """End what nobody takes, and make room for those who wait."""
        loop = asyncio.get_running_loop()
        now, timeout_s = loop.time(), self._limits.current.caller_timeout_s
        for answer in list(self._answers):
            if answer.unread_bytes and now - answer.since_s >= timeout_s:
                self._end(answer, errors.reader_too_slow(timeout_s), now)
        # A reload may have made room.
        self._wake()
        self._artifacts.wake()
        if self._wait_to_send:
            self._make_room(now)
        self._make_room_for_artifacts(now)
        self._timer = loop.call_later(_SWEEP_S, self._sweep) if self._answers else None

    def _make_room(self, now: float) -> None:
        """End an answer of which nothing is taken for each that waits, the heaviest callers first.

        None is ended for a caller who holds as much.
        """
        held = self._unread.held
        stalled = sorted(
            (answer for answer in self._answers if _is_stalled(answer, now)),
            key=lambda answer: (-held(answer.caller), answer.since_s),
        )
        for waiting, answer in zip(islice(self._wait_to_send, _MOST_ENDED), stalled, strict=False):
            if held(answer.caller) > held(waiting.caller):
                self._end(answer, errors.sending_too_much(self._unread.total), now)

    def _make_room_for_artifacts(self, now: float) -> None:
        """End every answer with an artifact that is read too slowly, for one would keep it."""
        if not self._artifacts.waiting:
            # The pace counts from when a call begins to wait: nobody asked for more before.
            for answer in self._answers:
                answer.taken_bytes, answer.counted_since_s = 0, now
            return
        answers: dict[Artifact, list[_Answer]] = {}
        for answer in self._answers:
            if answer.artifact:
                answers.setdefault(answer.artifact, []).append(answer)
        paces = {
            artifact: max(_pace(answer, now) for answer in readers)
            for artifact, readers in answers.items()
        }
        for artifact in self._artifacts.too_slow(paces):
            for answer in answers[artifact]:
                if not answer.parting or now - answer.since_s >= _STALLED_S:
                    refusal = errors.sending_too_much(self._artifacts.total_bytes)
                    self._end(answer, refusal, now)

    def _end(self, answer: _Answer, refusal: WasmkilnError, now: float) -> None:
        """End the call with a word; if that is not taken either, the connection."""
        if answer.refusal is None:
            answer.refusal = refusal
        elif answer.parting and not answer.given_up:
            answer.given_up = True
        else:
            return
        answer.since_s = now
        answer.task.cancel()

    async def _part(self, answer: _Answer, refusal: WasmkilnError) -> None:
        """Tell the caller why its call ends, and wait until it is told: so long bytes are held."""
        answer.parting = True
        try:
            with contextlib.suppress(Exception):  # It has ended, one way or another.
                await self._abort(answer.context, refusal)
        except asyncio.CancelledError:
            if not answer.given_up:
                raise
            answer.task.uncancel()
            peer = answer.context.peer()
            log.warning("connection closed: its peer does not read", peer=peer)
            await self._close(peer)


def _is_stalled(answer: _Answer, now: float) -> bool:
    if not answer.unread_bytes or answer.given_up:
        return False
    return now - answer.since_s >= (_SWEEP_S if answer.parting else _STALLED_S)


def _pace(answer: _Answer, now: float) -> float:
    """Return how many bytes are taken in a second; of an answer that just began, any number."""
    if answer.parting:
        return 0.0
    seconds = now - answer.counted_since_s
    return answer.taken_bytes / seconds if seconds >= _STALLED_S else math.inf


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("answers are sent in tasks")
    return task
