"""One call under way, and every limit on the calls of all callers together.

==================  ==========================================================================
calls               ``Gate``: no caller runs more calls than it leaves free for others. Health,
                    reflection and channelz have gates of their own, so that probes are answered
                    when all calls are taken, and by watches, too
requests            half of ``receive_bytes`` for those that have arrived, until they are used:
                    whoever holds as much as it leaves free waits before the daemon reads more.
                    The other half for those that arrive slowly, each as large as a message may
                    be, since gRPC does not tell how much has come: where there is no room for
                    one more, the caller that has most of them loses one. A piece of an upload
                    counts as large as one may be; there are few, but gRPC lets larger ones in
turns               of questions, which are all RPCs without a module: a caller's wait for each
                    other, so that the event loop goes on with other callers between them
size                of a request, for each method (``most_bytes``)
answers             a caller that does not read makes gRPC hold one message for each call. These
                    are whole frames in an eighth of ``receive_bytes``, and so small beyond it that
                    all calls together fit into as much again
artifacts           ``receive_bytes`` for those that are being sent, whether the memory tier
                    holds them or not; each counts once, and one without room is refused. Of one
                    that is sent from its file, a frame counts for each call. So do modules, over
                    HTTP
uploads             each message is a request; what is kept has the limits of ``rpc.upload``
time                ``caller_timeout_s`` for each read and each write, ten times that for a whole
                    answer. Who does not read the refusal either has its call cut off
==================  ==========================================================================

A refusal is COMPILE_QUEUE_FULL, and names its limit. ``Traffic`` looks ten times a second at the
calls that wait for their callers; no call has a timer of its own.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote
from weakref import WeakValueDictionary

from grpc import aio

from wasmkilnd import errors, model, wire
from wasmkilnd.access.policy import ANONYMOUS
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.files.spooled import Spooled
from wasmkilnd.network import address_of, host_of
from wasmkilnd.quota import UNLIMITED, Quota
from wasmkilnd.rpc.messages import MODULE_FIELDS, REQUEST_BYTES, SMALL_BYTES, bound
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.metrics import TrafficUsage
from wasmkilnd.telemetry.tracing import CallTrace
from wasmkilnd.waits.flights import FairShare, Waiter

T = TypeVar("T", bytes, bytes | memoryview)
Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpcio ships no types

# A module above its limit should get the daemon's own error, which explains it. A message above
# this size gets gRPC's.
_LEAST_MESSAGE_BYTES = 16 * 1024 * 1024
MESSAGE_OVERHEAD_BYTES = 1024 * 1024
# Calls of health, reflection and channelz, and those that the daemon answers while it drains.
MOST_PROBES = 1024
# Calls that may last as long as the caller likes: watches of the health, and reflection.
MOST_WATCHES = 960

_LOOK_S = 0.1
# All requests that arrive within this time are together no more than the network brings in it.
_SLOW_S = 0.1
_WHOLE_ANSWER = 10
# Of one caller, at a time. Each holds the loop for a millisecond or two.
_QUESTIONS = 4
_LEAST_PIECE_BYTES = 16 * 1024
_LEAST_ANSWER_BYTES = 8 * 1024 * 1024
# More than this beside a piece makes gRPC hold it, for its first window takes as much.
_WINDOW_BYTES = 64 * 1024

PRIORITY_KEY = "wasmkiln-priority"
# Each caller makes many calls.
_waiter = lru_cache(maxsize=4096)(Waiter)
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")


@dataclass(slots=True, eq=False)
class _Piece:
    """What a call holds of an artifact or a module that is sent from its file."""

    size_bytes: int = wire.CHUNK_BYTES


class Call:
    """A call under way: who makes it, what its log line tells, and what it holds of the limits."""

    # Who makes the call, once the guard has admitted it.
    identity: model.Identity = model.ANYBODY
    # Where the work of the call counts.
    quota: Quota = UNLIMITED
    # gRPC's task for the call.
    task: asyncio.Task[Any] | None = None
    # Whether a gate let the call in.
    entered: bool = False
    trace: CallTrace | None = None
    # Whether the daemon has its request, or that of many which it read last.
    arrived: bool = False
    module: str = ""
    engine: str = ""
    origin: str = ""
    queue_ms: float | None = None
    compile_ms: float | None = None
    bytes: int | None = None
    # Whether it has its line of the audit.
    audited: bool = False
    # The name of the gRPC code that ended it, where no error of the table did.
    code: str = "OK"
    # The error that ends the call.
    refusal: WasmkilnError | None = None
    # Since when the daemon waits for the caller, while it does.
    waits_since_s: float = 0.0
    # Whether it waits for a request.
    reading: bool = False
    # Whether the one before brought nothing new.
    in_vain: bool = False
    # Where a request counts that has arrived, and how much.
    traffic: Traffic | None = None
    request_bytes: int = 0
    # What its request counts while it arrives slowly, and would count.
    arriving_bytes: int = 0
    slow_bytes: int = 0
    # The size of the message that gRPC holds until the caller reads.
    unread_bytes: int = 0
    # When the caller must have read the whole answer.
    answer_due_s: float = math.inf
    # The artifact, or the module, that is being sent.
    sent: model.Item | _Piece | None = None
    _request_id: str = ""

    def __init__(self, context: Context, entrance: model.Entrance = model.PLAINTEXT) -> None:
        """Begin a call that came in at ``entrance``."""
        self.context, self.entrance, self.started_s = context, entrance, time.perf_counter()
        # gRPC's name of the other end of the connection.
        self.peer: str = context.peer()
        # The name under which the call takes turns with other callers, and counts in each limit.
        self.caller = caller_of(self.peer)
        # What the caller sent beside the request, each a name and a value; and the first of each.
        self.metadata: tuple[Any, ...] = context.invocation_metadata() or ()
        self._first: dict[str, str] = dict(reversed(self.metadata))
        # What else its line of the audit tells.
        self.about: dict[str, str | int | bool] = {}

    def admitted(self, identity: model.Identity) -> None:
        """Note who makes the call: an identity with a name counts as one caller.

        In each namespace, since tokens of two tenants may have the same name.
        """
        self.identity = identity
        if identity.name and identity.name != ANONYMOUS:
            self.caller = f"{identity.namespace}/{identity.name}"

    def release_request(self) -> None:
        """Stop counting the request's bytes. A second call does nothing."""
        if self.traffic and self.request_bytes:
            self.traffic.requests.add(self.caller, -self.request_bytes)
            self.traffic.freed.set()
            self.request_bytes = 0

    def credentials(self) -> model.Credentials:
        """Return what the call brings along to say who makes it."""
        certificate = b""
        if self.entrance.transport is model.Transport.MTLS:
            shown = self.context.auth_context()
            # Those between it and its CA too, if the caller sent some.
            certificate = b"".join(
                (*shown.get("x509_pem_cert", ()), *shown.get("x509_pem_cert_chain", ()))
            )
        # Of two, a proxy may have checked the other one. Together they are no token.
        sent = (value for name, value in self.metadata if name == "authorization")
        said = [value for value in sent if isinstance(value, str)]
        return model.Credentials(", ".join(said), certificate)

    @property
    def request_id(self) -> str:
        """The id that the caller sent with the call if it is well-formed, else a new one."""
        if not self._request_id:
            sent = self._first.get("x-request-id")
            self._request_id = sent if sent and _REQUEST_ID.fullmatch(sent) else os.urandom(8).hex()
        return self._request_id

    @property
    def waiter(self) -> Waiter:
        """Who waits, and whether it asked to yield to other callers. Raises INVALID_REQUEST."""
        said = self._first.get(PRIORITY_KEY, "")
        if said not in ("", "interactive", "background"):
            raise errors.invalid_request(
                f"the metadata {PRIORITY_KEY} is 'background' or 'interactive',"
                f" not {errors.quoted(said)}",
                PRIORITY_KEY,
            )
        return _waiter(self.caller, said == "background")


@lru_cache(maxsize=4096)  # More than the connections of most daemons; each makes many calls.
def caller_of(peer: str) -> str:
    """Return the caller that a call counts for, from gRPC's name of its peer.

    Another machine is one caller, however many connections it opens: its address, and of
    IPv6 the /64 network that one machine commonly owns. On loopback each connection is a
    caller, since all have the same address there. Unix sockets are one caller together:
    gRPC does not tell them apart.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    try:
        address = address_of(unquote(rest).rpartition(":")[0].strip("[]"))
    except ValueError:
        return peer
    return peer if address.is_loopback else host_of(address)


def frames_from(
    artifact: model.Artifact, offset_bytes: int
) -> tuple[Iterable[bytes | Awaitable[bytes]], int]:
    """Return the frames that have what follows ``offset_bytes``, and how much the first has before.

    Shield those that are awaited: other calls may wait for them too.
    """
    if artifact.pieces:
        return artifact.pieces(offset_bytes), 0
    frames = artifact.frames or artifact.coming
    return frames[offset_bytes // wire.CHUNK_BYTES :], offset_bytes % wire.CHUNK_BYTES


def message_bytes_for(module_bytes: int) -> int:
    """Return how large messages may be: a little larger than modules."""
    return max(_LEAST_MESSAGE_BYTES, module_bytes + MESSAGE_OVERHEAD_BYTES)


class Gate(FairShare):
    """Lets calls in: a caller may run at most as many as are still free for others."""

    # Whether the daemon drains.
    closed = False

    def enter(self, caller: str) -> None:
        """Let a call in. Raises COMPILE_QUEUE_FULL, or SERVER_DRAINING once closed."""
        if self.closed:
            raise errors.server_draining()
        held = self.held.get(caller, 0)
        if self._limit() - self.total <= held:
            raise errors.too_many_calls(self.total, held)
        self.total += 1
        self.held[caller] = held + 1


class Traffic:
    """The limits of all calls, and what these hold. For one event loop."""

    def __init__(self, limits: model.Reloadable[Settings], message_bytes: int) -> None:
        """Let messages of ``message_bytes`` in."""
        self._limits = limits
        self.message_bytes = message_bytes
        self.calls = Gate(lambda: limits.current.max_calls)
        self.probes = Gate(lambda: MOST_PROBES)
        self.watches = Gate(lambda: MOST_WATCHES)
        self.requests = FairShare(self._half)
        # Set when a request is released.
        self.freed = asyncio.Event()
        self._arriving = FairShare(self._half)
        self._unread = FairShare(self._unread_half)
        self._pinned = FairShare(lambda: limits.current.receive_bytes)
        # By the object's id, the calls that it is being sent to. It counts for the first's caller.
        self._sent: dict[int, list[Call]] = {}
        # The calls that wait for their callers.
        self._waiting: dict[Call, None] = {}
        self._questions: WeakValueDictionary[Any, asyncio.Semaphore] = WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None

    def usage(self) -> TrafficUsage:
        """Return what calls hold, for the metrics."""
        held = self.receive_bytes, self._unread.total, self._pinned.total
        return TrafficUsage(self.calls.total, *held)

    @property
    def receive_bytes(self) -> int:
        """The size of all requests, where one that arrives slowly counts as a whole message."""
        return self.requests.total + self._arriving.total

    def most_bytes(self, method: str) -> int:
        """Return how large a request of ``method`` may be."""
        if method in MODULE_FIELDS:
            return self.message_bytes
        return REQUEST_BYTES.get(method, SMALL_BYTES)

    async def read(self, call: Call, most_bytes: int, *, piece: bool = False) -> bytes | None:
        """Return the next message, None after the last; it counts until ``release_request``.

        It is a ``piece`` of an upload that has its place. Raises INVALID_REQUEST if it is too
        large.
        """
        call.slow_bytes = most_bytes if piece else self.message_bytes
        call.arrived, since_s = False, call.waits_since_s
        try:
            while self.requests.room(call.caller) <= 0:
                if call not in self._waiting:
                    self.await_caller(call)
                self.freed.clear()
                await self.freed.wait()
            self.await_caller(call)
            if call.in_vain:
                call.waits_since_s = since_s
            call.reading = True
            message = await call.context.read()
        finally:
            call.reading = False
            self._waiting.pop(call, None)
            if call.arriving_bytes:
                self._count_slow(call, -call.arriving_bytes)
        call.arrived = True
        if message is aio.EOF:
            return None
        size_bytes = len(message)
        if size_bytes > most_bytes:
            bound("", size_bytes, most_bytes)
        if size_bytes > SMALL_BYTES:
            size_bytes *= 2  # protobuf copies the module.
        call.traffic, call.request_bytes = self, size_bytes
        self.requests.add(call.caller, size_bytes)
        return bytes(message)

    @asynccontextmanager
    async def turns(self, of: tuple[str, bool]) -> AsyncIterator[None]:
        """Wait until few other questions of a caller are being answered, and let others go on.

        Probes wait for probes alone, which wait for no tier.
        """
        async with self._questions.setdefault(of, asyncio.Semaphore(_QUESTIONS)):
            yield
            await asyncio.sleep(0)

    async def write(self, call: Call, message: bytes | memoryview) -> None:
        """Send one message; return when gRPC may send it, which is when the caller reads."""
        self.hold(call, message)
        await call.context.write(message)
        # Not in a finally: gRPC holds a message that was not read until the call has ended.
        self._waiting.pop(call, None)
        self._unread.add(call.caller, -call.unread_bytes)
        call.unread_bytes = 0

    async def send(
        self, call: Call, first: bytes, artifact: model.Artifact, offset_bytes: int
    ) -> bytes:
        """Send ``first`` and the artifact's frames but for the last message; return that one.

        The frames begin ``offset_bytes`` into the artifact, which is not encoded then.

        The handler returns it to gRPC, which sends it together with the status. This saves the
        caller one turn of the event loop. The message counts until the call has ended.
        """
        frames, offset_bytes = frames_from(artifact, offset_bytes)
        self.begin_answer(call, artifact)
        for following in frames:
            await self.write(call, first)
            if isinstance(following, bytes):
                first = following
            else:  # Other calls may wait for it too.
                first = await asyncio.shield(following)
            if offset_bytes:
                [chunk] = wire.payload_views((first,))
                first, offset_bytes = wire.frame(chunk[offset_bytes:]), 0
            if piece_bytes := self.piece_bytes(call, len(first)):
                pieces = wire.cut(first, piece_bytes)
                first = next(pieces)
                for piece in pieces:
                    await self.write(call, first)
                    first = piece
        return self.hold(call, first)

    def begin_answer(self, call: Call, item: model.Item | None = None) -> None:
        """Give the caller its time for a whole answer; count ``item``. Raises COMPILE_QUEUE_FULL.

        An artifact alone may be sent, however large.
        """
        limit_s = self._limits.current.caller_timeout_s
        call.answer_due_s = time.monotonic() + _WHOLE_ANSWER * limit_s
        if item is None:
            return
        in_file = (
            item.pieces if isinstance(item, model.Artifact) else isinstance(item.wasm, Spooled)
        )
        sent = _Piece() if in_file else item
        if id(sent) not in self._sent:
            total = self._pinned.total
            if total and not self._pinned.fits(call.caller, sent.size_bytes):
                raise errors.sending_too_much(total)
            self._pinned.add(call.caller, sent.size_bytes)
        self._sent.setdefault(id(sent), []).append(call)
        call.sent = sent

    def piece_bytes(self, call: Call, size_bytes: int) -> int:
        """Return into how large pieces a message has to be cut now; 0 if it fits as it is."""
        return 0 if self._unread.fits(call.caller, size_bytes) else self._piece_bytes

    def await_caller(self, call: Call) -> None:
        """Give the caller ``caller_timeout_s`` from now on to send or read something."""
        call.waits_since_s = time.monotonic()
        self._waiting[call] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def end(self, call: Call) -> None:
        """Give back all that a call held."""
        self._waiting.pop(call, None)
        call.task = None
        call.release_request()
        if call.unread_bytes:
            self._unread.add(call.caller, -call.unread_bytes)
        if call.sent:
            calls, size_bytes = self._sent[id(call.sent)], call.sent.size_bytes
            self._pinned.add(calls[0].caller, -size_bytes)
            calls.remove(call)
            if calls:
                self._pinned.add(calls[0].caller, size_bytes)
            else:
                del self._sent[id(call.sent)]

    def _half(self) -> int:
        return max(self._limits.current.receive_bytes // 2, 2 * self.message_bytes)

    def _unread_half(self) -> int:
        """Return how many bytes of answers may wait to be read in whole frames."""
        return max(_LEAST_ANSWER_BYTES, self._limits.current.receive_bytes // 4) // 2

    @property
    def _piece_bytes(self) -> int:
        return max(_LEAST_PIECE_BYTES, self._unread_half() // self._limits.current.max_calls)

    def hold(self, call: Call, message: T) -> T:
        """Count a message until the caller reads it, and return it.

        Raises COMPILE_QUEUE_FULL for one that cannot be cut and is too large.

        All else is so small that there is room for it in every call.
        """
        size_bytes = len(message)
        if (
            size_bytes > _WINDOW_BYTES + _LEAST_PIECE_BYTES
            and size_bytes > _WINDOW_BYTES + self._piece_bytes
            and not self._unread.fits(call.caller, size_bytes)
        ):
            raise errors.sending_too_much(self._unread.total)
        call.unread_bytes = size_bytes
        self._unread.add(call.caller, size_bytes)
        self.await_caller(call)
        return message

    def _look(self) -> None:
        """End the calls whose callers take too long, and count requests that arrive slowly."""
        now, limit_s = time.monotonic(), self._limits.current.caller_timeout_s
        for call in list(self._waiting):
            if call not in self._waiting:  # It made room for one before.
                continue
            waited_s = now - call.waits_since_s
            if waited_s < limit_s and now < call.answer_due_s:
                if call.reading and waited_s >= _SLOW_S and not call.arriving_bytes:
                    self._make_room(call)
            elif call.refusal:  # Its caller does not read that either.
                self.cancel(call, call.refusal)
            elif call.arrived:
                had_s = limit_s if waited_s >= limit_s else _WHOLE_ANSWER * limit_s
                self.cancel(call, errors.reader_too_slow(had_s))
            elif call.reading:
                self.cancel(call, errors.request_too_slow(limit_s))
            else:
                self.cancel(call, errors.receiving_too_much(self.receive_bytes))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK_S, self._look) if self._waiting else None

    def _make_room(self, call: Call) -> None:
        """Count a request that arrives slowly; without room for it, end one of who has most."""
        self._count_slow(call, call.slow_bytes)
        if self._arriving.free < 0:
            held = self._arriving.held
            slow = (each for each in self._waiting if each.arriving_bytes)
            most = max(slow, key=lambda each: (held[each.caller], each is call))
            self._count_slow(most, -most.arriving_bytes)
            self.cancel(most, errors.receiving_too_much(self._arriving.total))

    def _count_slow(self, call: Call, size_bytes: int) -> None:
        call.arriving_bytes += size_bytes
        self._arriving.add(call.caller, size_bytes)

    def cancel(self, call: Call, refusal: WasmkilnError) -> None:
        """End a call with ``refusal``."""
        call.refusal, call.answer_due_s = refusal, math.inf
        self._waiting.pop(call, None)
        if call.task:
            call.task.cancel()
