"""Sends answers, and limits how much of them the daemon holds while their callers do not read.

``write`` returns when gRPC may send a message, which is when its caller reads. Until then
gRPC holds a copy of the message, one for each answer, and the answer holds its artifact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from itertools import islice

import structlog

from wasmkilnd import errors, wire
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import Artifact, TrafficLimits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow.answer import Answer, Context
from wasmkilnd.rpc.flow.send_budget import SendBudget

log = structlog.get_logger("wasmkilnd.rpc")


# A message is at most this part of what its caller may still hold: the first callers get
# whole frames, the last ones still something. 128 MiB are enough for some 640 callers that
# read nothing.
_SHARE = 128
_LEAST_PIECE_BYTES = 16 * 1024
# The last part of an artifact that goes out with the status: gRPC's first window takes it.
_LAST_BYTES = 64 * 1024
_SWEEP_S = 0.25
# An answer of which nothing was read for so long is ended when other calls wait for its room.
_STALLED_S = 1.0
_MOST_ENDED = 128  # In one sweep.


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
        self._answers: dict[Answer, None] = {}
        self._wait_to_send: dict[Answer, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Future[None]] = set()

    @property
    def unread_bytes(self) -> int:
        """The size of the messages that gRPC holds until callers read."""
        return self._unread.total

    @property
    def pinned_bytes(self) -> int:
        """The size of the artifacts that are being sent."""
        return self._artifacts.total_bytes

    async def send(self, context: Context, caller: str, message: bytes) -> None:
        """Send a serialized message. Raises COMPILE_QUEUE_FULL, mostly after the caller got it."""
        await self._send(context, caller, message, None, keep_last=False)

    async def send_but_last(
        self, context: Context, caller: str, first: bytes, artifact: Artifact | None
    ) -> bytes:
        """Send ``first`` and the artifact's frames but for the last message; return that one.

        The handler returns it to gRPC, which sends it together with the status. This saves the
        caller one turn of the event loop. The message counts until the current task ends, and it
        is small, so that gRPC can send it at once. Raises as ``send`` does.
        """
        return await self._send(context, caller, first, artifact, keep_last=True)

    async def _send(
        self,
        context: Context,
        caller: str,
        first: bytes,
        artifact: Artifact | None,
        *,
        keep_last: bool,
    ) -> bytes:
        if artifact:
            await self._artifacts.enter(caller, artifact)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("answers are sent in tasks")
        answer = Answer(context, caller, task, artifact, counted_since_s=loop.time())
        self._answers[answer] = None
        if self._timer is None:
            self._timer = loop.call_later(_SWEEP_S, self._sweep)
        try:
            message = first
            for following in (artifact.frames or artifact.coming) if artifact else ():
                await self._write_in_pieces(answer, message)
                if isinstance(following, bytes):
                    message = following
                else:
                    message = await asyncio.shield(following)
            if keep_last:
                rest, message = wire.cut_off(message, _LAST_BYTES)
                if rest:
                    await self._write_in_pieces(answer, rest)
                await self._wait_for_room(answer)
                self._note_unread(answer, message)
                answer.is_last = True
                task.add_done_callback(lambda _: self._end_of(answer))
            else:
                await self._wait_for_room(answer)
                await self._write(answer, message)
        except asyncio.CancelledError:
            if answer.refusal is None:
                raise  # The caller has hung up.
            answer.task.uncancel()
            await self._refuse(answer, answer.refusal)
            raise answer.refusal from None
        finally:
            if not answer.is_last:
                self._end_of(answer)
        return message

    def _end_of(self, answer: Answer) -> None:
        del self._answers[answer]
        self._unread.add(answer.caller, -answer.unread_bytes)
        if answer.artifact:
            self._artifacts.leave(answer.caller, answer.artifact)
        self._wake()

    async def _write_in_pieces(self, answer: Answer, message: bytes) -> None:
        piece_bytes = await self._wait_for_room(answer)
        if len(message) <= piece_bytes:
            await self._write(answer, message)
        else:
            for piece in wire.cut(message, piece_bytes):
                await self._write(answer, piece)

    async def _write(self, answer: Answer, message: bytes) -> None:
        self._note_unread(answer, message)
        await answer.context.write(message)
        # Not in a finally: gRPC holds a message that was not read until the call has ended.
        self._unread.add(answer.caller, -len(message))
        answer.unread_bytes = 0
        answer.taken_bytes += len(message)
        if self._wait_to_send:
            self._wake()

    def _note_unread(self, answer: Answer, message: bytes) -> None:
        answer.unread_bytes, answer.since_s = len(message), asyncio.get_running_loop().time()
        self._unread.add(answer.caller, len(message))

    def _piece_bytes(self, caller: str) -> int:
        """Return how large a message to ``caller`` may be; 0 if none may be sent now."""
        piece_bytes = self._unread.room(caller) // _SHARE
        return piece_bytes if piece_bytes >= _LEAST_PIECE_BYTES else 0

    async def _wait_for_room(self, answer: Answer) -> int:
        """Return how large the next message may be, once any may be sent."""
        if piece_bytes := self._piece_bytes(answer.caller):
            return piece_bytes
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
            # The end of a connection after the last message, as after a refusal that is not read.
            allowed_s = 2 * timeout_s if answer.is_last else timeout_s
            if answer.unread_bytes and now - answer.since_s >= allowed_s:
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
            (answer for answer in self._answers if answer.stalled(now, _patience_s(answer))),
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
        answers: dict[Artifact, list[Answer]] = {}
        for answer in self._answers:
            if answer.artifact:
                answers.setdefault(answer.artifact, []).append(answer)
        paces = {
            artifact: max(answer.pace(now, _STALLED_S) for answer in readers)
            for artifact, readers in answers.items()
        }
        for artifact in self._artifacts.too_slow(paces):
            for answer in answers[artifact]:
                can_be_told = not answer.refusing and not answer.is_last
                if can_be_told or now - answer.since_s >= _STALLED_S:
                    refusal = errors.sending_too_much(self._artifacts.total_bytes)
                    self._end(answer, refusal, now)

    def _end(self, answer: Answer, refusal: WasmkilnError, now: float) -> None:
        """End an answer with a refusal; at the second time give its connection up.

        No refusal can follow the last message, so there the first time is the second.
        """
        if answer.given_up:
            return
        if answer.is_last:
            answer.given_up = True
            closing = asyncio.ensure_future(self._give_up(answer))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            return
        if answer.refusal is None:
            answer.refusal = refusal
        elif answer.refusing:
            answer.given_up = True
        else:
            return
        answer.since_s = now
        answer.task.cancel()

    async def _refuse(self, answer: Answer, refusal: WasmkilnError) -> None:
        """Send the refusal, and wait until the caller has read it: so long gRPC holds the bytes."""
        answer.refusing = True
        try:
            with contextlib.suppress(Exception):  # The call has ended in either case.
                await self._abort(answer.context, refusal)
        except asyncio.CancelledError:
            if not answer.given_up:
                raise
            answer.task.uncancel()
            await self._give_up(answer)

    async def _give_up(self, answer: Answer) -> None:
        peer = answer.context.peer()
        log.warning("connection closed: its peer does not read", peer=peer)
        await self._close(peer)


def _patience_s(answer: Answer) -> float:
    return _SWEEP_S if answer.refusing else _STALLED_S
