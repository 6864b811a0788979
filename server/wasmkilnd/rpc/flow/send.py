"""Sends answers, and limits how much of them the daemon holds while their callers do not read.

``write`` returns when gRPC may send a message, which is when its caller reads. Until then
gRPC holds a copy of the message, one for each answer, and the answer holds its artifact.
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
# whole frames, the last ones still something. 128 MiB are enough for some 640 callers that
# read nothing.
_SHARE = 128
_LEAST_PIECE_BYTES = 16 * 1024
_SWEEP_S = 0.25
# An answer of which nothing was read for so long is ended when other calls wait for its room.
_STALLED_S = 1.0
_MOST_ENDED = 128  # In one sweep.


@dataclass(slots=True, eq=False)
class _Answer:
    """An answer on its way."""

    context: Context
    caller: str
    task: asyncio.Task[Any]
    artifact: Artifact | None
    unread_bytes: int = 0
    """The size of the message that gRPC holds until the caller reads."""
    since_s: float = 0.0
    """When that message was written."""
    taken_bytes: int = 0
    """What the caller has read since ``counted_since_s``."""
    counted_since_s: float = 0.0
    """When the answer began, or later: when a call began to wait for room."""
    refusal: WasmkilnError | None = None
    """Why the answer is ended before all of it was sent."""
    refusing: bool = False
    """Whether the refusal waits for the caller to read it."""
    given_up: bool = False
    """Whether the caller did not read that either."""


class Sender:
    """Writes answers within a budget of bytes. For one event loop.

    Callers that do not read hold up no caller that does. The more bytes are held, the smaller
    the messages become. When no room is left, answers of which nothing is read are ended.
    """

    def __init__(
        self,
        limits: Reloadable[TrafficLimits],
        abort: Callable[[Context, WasmkilnError], Awaitable[None]],
        close: Callable[[str], Awaitable[object]],
        in_memory: Callable[[Artifact], bool],
    ) -> None:
        """Use ``abort`` to end a call with an error, and ``close`` to close a peer's connection.

        The latter is for a caller that does not read the error. ``in_memory`` tells whether
        the memory tier holds an artifact.
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
        """The size of the messages that gRPC holds until callers read."""
        return self._unread.total

    @property
    def pinned_bytes(self) -> int:
        """The size of the artifacts that are being sent."""
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

        ``cut`` cuts messages that are larger than there is room for; ``artifact`` is what they
        keep in memory. Raises COMPILE_QUEUE_FULL, in most cases after the caller got it.
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
                raise  # The caller has hung up.
            answer.task.uncancel()
            await self._refuse(answer, answer.refusal)
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
        # Not in a finally: gRPC holds a message that was not read until the call has ended.
        self._unread.add(answer.caller, -len(message))
        answer.unread_bytes = 0
        answer.taken_bytes += len(message)
        if self._wait_to_send:
            self._wake()

    def _piece_bytes(self, caller: str) -> int:
        """Return how large a message to ``caller`` may be; 0 if none may be sent now."""
        piece_bytes = self._unread.room(caller) // _SHARE
        return piece_bytes if piece_bytes >= _LEAST_PIECE_BYTES else 0

    async def _room(self, answer: _Answer) -> int:
        try:
            while not (piece_bytes := self._piece_bytes(answer.caller)):
                turn = asyncio.get_running_loop().create_future()
                self._wait_to_send[answer] = turn  # A second wait keeps the place in the queue.
                await turn
            return piece_bytes
        finally:
            self._wait_to_send.pop(answer, None)

    def _wake(self) -> None:
        """Let the answers go on for which there is room now."""
        free_bytes = self._unread.free
        for answer, turn in self._wait_to_send.items():
            if free_bytes < _SHARE * _LEAST_PIECE_BYTES:
                break
            piece_bytes = self._piece_bytes(answer.caller)
            if piece_bytes and not turn.done():
                turn.set_result(None)
                free_bytes -= piece_bytes

    def _sweep(self) -> None:
        """End answers that are not read for too long, and make room for calls that wait."""
        loop = asyncio.get_running_loop()
        now, timeout_s = loop.time(), self._limits.current.caller_timeout_s
        for answer in list(self._answers):
            if answer.unread_bytes and now - answer.since_s >= timeout_s:
                self._end(answer, errors.reader_too_slow(timeout_s), now)
        # A reload may have raised the limits.
        self._wake()
        self._artifacts.wake()
        if self._wait_to_send:
            self._make_room(now)
        self._make_room_for_artifacts(now)
        self._timer = loop.call_later(_SWEEP_S, self._sweep) if self._answers else None

    def _make_room(self, now: float) -> None:
        """End one stalled answer for each that waits, those of the heaviest callers first.

        A caller loses none to a caller that holds as much.
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
        """End all answers with an artifact that is read too slowly: any of them keeps it."""
        if not self._artifacts.waiting:
            # Paces count from when a call begins to wait. Before, no reader was in the way.
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
                if not answer.refusing or now - answer.since_s >= _STALLED_S:
                    refusal = errors.sending_too_much(self._artifacts.total_bytes)
                    self._end(answer, refusal, now)

    def _end(self, answer: _Answer, refusal: WasmkilnError, now: float) -> None:
        """End an answer with a refusal; at the second time give its connection up."""
        if answer.refusal is None:
            answer.refusal = refusal
        elif answer.refusing and not answer.given_up:
            answer.given_up = True
        else:
            return
        answer.since_s = now
        answer.task.cancel()

    async def _refuse(self, answer: _Answer, refusal: WasmkilnError) -> None:
        """Send the refusal, and wait until the caller has read it: so long gRPC holds the bytes."""
        answer.refusing = True
        try:
            with contextlib.suppress(Exception):  # The call has ended in either case.
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
    return now - answer.since_s >= (_SWEEP_S if answer.refusing else _STALLED_S)


def _pace(answer: _Answer, now: float) -> float:
    """Return how many bytes a second are read; infinite for an answer that began just now."""
    if answer.refusing:
        return 0.0
    seconds = now - answer.counted_since_s
    return answer.taken_bytes / seconds if seconds >= _STALLED_S else math.inf


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("answers are sent in tasks")
    return task
