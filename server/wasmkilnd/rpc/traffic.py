"""One call under way, and every limit on the calls of all callers together.

==================  ==========================================================================
calls               ``Gate``: no caller runs more calls than it leaves free for others. Health,
                    reflection and channelz have a small gate of their own, so that probes are
                    answered when all calls are taken
requests            half of ``receive_bytes`` for those that have arrived, until they are used:
                    whoever holds as much as it leaves free waits before the daemon reads more.
                    The other half for those that arrive slowly, each as large as a message may
                    be, since gRPC does not tell how much has come: one without room is refused
turns               of questions, which are all calls without a module: a caller's wait for each
                    other, so that the event loop goes on with other callers between them
size                of a request, for each method (``most_bytes``)
answers             a caller that does not read makes gRPC hold one message for each call. These
                    are whole frames in half of ``send_bytes``, and so small beyond it that all
                    calls together fit into the other half
artifacts           ``send_pinned_bytes`` for those that only their answers keep in memory; each
                    counts once, and one without room is refused
time                ``caller_timeout_s`` for each read and each write, ten times that for a whole
                    answer. Who does not read the refusal either has its call cut off
==================  ==========================================================================

Every share is a ``FairShare``: a caller gets no more than it leaves free. A refusal is
COMPILE_QUEUE_FULL, and names its limit. ``Traffic`` looks ten times a second at the calls that
wait for their callers; no call has a timer of its own.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote
from weakref import WeakValueDictionary

from grpc import aio

from wasmkilnd import errors, model, wire
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.fair_share import FairShare
from wasmkilnd.network import address_of, host_of
from wasmkilnd.quota import UNLIMITED, Quota
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.messages import REQUEST_BYTES, SMALL_BYTES
from wasmkilnd.telemetry.metrics import TrafficUsage

Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpcio ships no types

MOST_PROBES = 1024
"""Calls of health, reflection and channelz, and those that the daemon answers while it drains."""
FREE_FOR_CHECKS = 64
"""Of these, calls that may last, such as a watch, leave so many free for those that do not."""
WITH_MODULE = ("/wasmkiln.v1.ModuleService/Load", "/wasmkiln.v1.ModuleService/Compile")

_LOOK_S = 0.1
# All requests that arrive within this time are together no more than the network brings in it.
_SLOW_S = 0.1
_WHOLE_ANSWER = 10
# Of one caller, at a time. Each holds the loop for a millisecond or two.
_QUESTIONS = 4
_LEAST_PIECE_BYTES = 16 * 1024
# The last part of an artifact goes out with the status: gRPC's first window takes it.
_LAST_BYTES = 64 * 1024

ANONYMOUS = "anonymous"
"""The name of callers without credentials, where the policy lets them in."""
PRIORITY_KEY = "wasmkiln-priority"
_PRIORITIES = {"": False, "interactive": False, "background": True}
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")


@dataclass(slots=True, eq=False)
class Call:
    """A call under way: who makes it, what its log line tells, and what it holds of the limits."""

    context: Context
    entrance: model.Entrance = model.PLAINTEXT
    """Where the call came in."""
    identity: model.Identity = model.ANYBODY
    """Who makes the call, once the guard has admitted it."""
    quota: Quota = UNLIMITED
    """Where the work that the call starts counts."""
    peer: str = field(init=False)
    """gRPC's name of the other end of the connection."""
    caller: str = field(init=False)
    """The name under which the call takes turns with other callers, and counts in each limit."""
    task: asyncio.Task[Any] | None = None
    """gRPC's task for the call."""
    release_request: Callable[[], None] = lambda: None
    """Stops counting the request's bytes. A second call does nothing."""
    working: bool = False
    """Whether the request has arrived, so that the daemon works for it."""
    module: str = ""
    engine: str = ""
    origin: str = ""
    queue_ms: float | None = None
    compile_ms: float | None = None
    bytes: int | None = None
    about: dict[str, str | int | bool] = field(default_factory=dict)
    """What else its line of the audit tells."""
    audited: bool = False
    """Whether it has its line of the audit."""
    reads_since_s: float = math.inf
    """Since when the daemon waits for its request; infinite while it does not."""
    due_s: float = math.inf
    """When the caller must have sent or read what the daemon waits for."""
    answer_due_s: float = math.inf
    """When the caller must have read the whole answer."""
    arriving_bytes: int = 0
    """What its request counts while it arrives slowly."""
    unread_bytes: int = 0
    """The size of the message that gRPC holds until the caller reads."""
    artifact: model.Artifact | None = None
    """The artifact that is being sent."""
    refusal: WasmkilnError | None = None
    """Why a limit ends the call."""
    _request_id: str = ""
    _sent: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        self.peer = self.context.peer()
        self.caller = caller_of(self.peer)

    def admitted(self, identity: model.Identity) -> None:
        """Note who makes the call: an identity with a name counts as one caller.

        In each namespace, since tokens of two tenants may have the same name.
        """
        self.identity = identity
        if identity.name and identity.name != ANONYMOUS:
            self.caller = f"{identity.namespace}/{identity.name}"

    def credentials(self) -> model.Credentials:
        """Return what the call brings along to say who makes it."""
        certificate = b""
        if self.entrance.transport is model.Transport.MTLS:
            said = self.context.auth_context()
            # Those between it and its CA too, if the caller sent some.
            certificate = b"".join(
                (*said.get("x509_pem_cert", ()), *said.get("x509_pem_cert_chain", ()))
            )
        # Of two, a proxy may have checked the other one. Together they are no token.
        return model.Credentials(", ".join(self._all_metadata("authorization")), certificate)

    @property
    def request_id(self) -> str:
        """The id that the caller sent with the call if it is well-formed, else a new one."""
        if not self._request_id:
            sent = self._metadata("x-request-id")
            self._request_id = sent if _REQUEST_ID.fullmatch(sent) else os.urandom(8).hex()
        return self._request_id

    @property
    def background(self) -> bool:
        """Whether the caller asked to yield to other callers. Raises INVALID_REQUEST."""
        return is_background(self._metadata(PRIORITY_KEY))

    def metadata(self) -> tuple[Any, ...]:
        """Return the metadata that the caller sent, each a name and a value."""
        if self._sent is None:  # grpcio makes a new tuple each time.
            self._sent = tuple(self.context.invocation_metadata() or ())
        return self._sent

    def _metadata(self, wanted: str) -> str:
        return next(iter(self._all_metadata(wanted)), "")

    def _all_metadata(self, wanted: str) -> list[str]:
        return [value for key, value in self.metadata() if key == wanted and isinstance(value, str)]


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


def is_background(priority: str) -> bool:
    """Return whether a priority yields to other callers. Raises INVALID_REQUEST."""
    if priority not in _PRIORITIES:
        raise errors.invalid_request(
            f"the metadata {PRIORITY_KEY} is 'background' or 'interactive',"
            f" not {errors.quoted(priority)}",
            PRIORITY_KEY,
        )
    return _PRIORITIES[priority]


class Gate:
    """Counts the calls that run, refuses those above a limit, and can be closed to new ones.

    For one event loop. A caller may run at most as many calls as are still free for others.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._held = FairShare(limit)
        self._closed = False
        self._idle = asyncio.Event()

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._held.total

    def enter(self, caller: str, spare: int = 0) -> None:
        """Let a call in that leaves ``spare`` places free.

        Raises COMPILE_QUEUE_FULL, or SERVER_DRAINING once closed.
        """
        if self._closed:
            raise errors.server_draining()
        if self._held.room(caller) < 1 or (spare and self._held.free <= spare):
            raise errors.too_many_calls(self.running, self._held.held(caller))
        self._held.add(caller, 1)

    def leave(self, caller: str) -> None:
        """Note that a call has ended."""
        self._held.add(caller, -1)
        if self._closed and not self.running:
            self._idle.set()

    def close(self) -> None:
        """Refuse new calls from now on."""
        self._closed = True
        if not self.running:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until it is closed and no call runs."""
        await self._idle.wait()


@dataclass(slots=True)
class _Held:
    """What a request that has arrived takes of its share. Calling it gives all back, once."""

    traffic: Traffic
    caller: str
    size_bytes: int

    def __call__(self) -> None:
        if self.size_bytes:
            size_bytes, self.size_bytes = self.size_bytes, 0
            self.traffic.requests.add(self.caller, -size_bytes)
            self.traffic.wake()


class Traffic:
    """The limits of all calls, and what these hold. For one event loop."""

    def __init__(
        self,
        limits: Reloadable[model.TrafficLimits],
        message_bytes: int,
        in_memory: Callable[[model.Artifact], bool],
    ) -> None:
        """Let messages of ``message_bytes`` in.

        ``in_memory`` tells whether the memory tier holds an artifact now.
        """
        self._limits = limits
        self._message_bytes = message_bytes
        self._in_memory = in_memory
        self.calls = Gate(lambda: limits.current.calls)
        self.probes = Gate(lambda: MOST_PROBES)
        self.requests = FairShare(self._half)
        self._arriving = FairShare(self._half)
        self._unread = FairShare(lambda: limits.current.send_bytes // 2)
        self.pinned_bytes = 0
        """The size of the artifacts that are being sent, those in the memory tier included."""
        self._pinned: dict[model.Artifact, dict[Call, None]] = {}
        self._waiting: dict[Call, None] = {}
        """The calls that wait for their callers."""
        self._questions: WeakValueDictionary[tuple[str, bool], asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._turns: dict[asyncio.Future[None], str] = {}
        """Who waits to be read, in order."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def receive_bytes(self) -> int:
        """The size of all requests, where one that arrives slowly counts as a whole message."""
        return self.requests.total + self._arriving.total

    @property
    def send_bytes(self) -> int:
        """The size of the messages that gRPC holds until callers read."""
        return self._unread.total

    def usage(self) -> TrafficUsage:
        """Return what calls hold, for the metrics."""
        held = self.receive_bytes, self.send_bytes, self.pinned_bytes
        return TrafficUsage(self.calls.running, *held)

    def most_bytes(self, method: str) -> int:
        """Return how large a request of ``method`` may be."""
        if method in WITH_MODULE:
            return self._message_bytes
        return REQUEST_BYTES.get(method, SMALL_BYTES)

    async def read(self, call: Call, most_bytes: int) -> bytes | None:
        """Return the next message, None after the last; it counts until ``release_request``.

        Raises INVALID_REQUEST if it is too large.
        """
        if self.requests.room(call.caller) <= 0:
            await self._turn(call)
        call.reads_since_s = time.monotonic()
        self.await_caller(call, call.reads_since_s)
        try:
            message = await call.context.read()
        finally:
            call.reads_since_s = math.inf
            self._waiting.pop(call, None)
            if call.arriving_bytes:
                self._arrived(call)
        if message is aio.EOF:
            return None
        size_bytes = len(message)
        if size_bytes > most_bytes:
            raise errors.invalid_request(
                f"the request has {size_bytes:,} bytes, and one of this method may have at most"
                f" {most_bytes:,}: send less, or several requests",
                "",
                at_most=most_bytes,
                size_bytes=size_bytes,
            )
        self.requests.add(call.caller, size_bytes)
        call.release_request = _Held(self, call.caller, size_bytes)
        return bytes(message)

    @asynccontextmanager
    async def turns(self, of: tuple[str, bool]) -> AsyncIterator[None]:
        """Wait until few other questions of a caller are being answered, and let others go on.

        Probes wait for probes alone, which wait for no tier.
        """
        questions = self._questions.get(of)
        if questions is None:
            questions = self._questions[of] = asyncio.Semaphore(_QUESTIONS)
        async with questions:
            yield
            await asyncio.sleep(0)

    def hold_more(self, call: Call, size_bytes: int) -> None:
        """Count what was built of the request that was read last, beside its bytes."""
        held = call.release_request
        if isinstance(held, _Held):
            self.requests.add(call.caller, size_bytes)
            held.size_bytes += size_bytes

    async def write(self, call: Call, message: bytes) -> None:
        """Send one message; return when gRPC may send it, which is when the caller reads."""
        self._hold_unread(call, message)
        await call.context.write(message)
        # Not in a finally: gRPC holds a message that was not read until the call has ended.
        self._waiting.pop(call, None)
        self._unread.add(call.caller, -call.unread_bytes)
        call.unread_bytes = 0

    async def send(self, call: Call, first: bytes, artifact: model.Artifact | None = None) -> bytes:
        """Send ``first`` and the artifact's frames but for the last message; return that one.

        The handler returns it to gRPC, which sends it together with the status. This saves the
        caller one turn of the event loop. The message counts until the call has ended.
        """
        if artifact:
            call.answer_due_s = time.monotonic() + (
                _WHOLE_ANSWER * self._limits.current.caller_timeout_s
            )
            self._pin(call, artifact)
            for following in artifact.frames or artifact.coming:
                await self._write_in_pieces(call, first)
                if isinstance(following, bytes):
                    first = following
                else:  # Other calls may wait for it too.
                    first = await asyncio.shield(following)
            last_bytes = _LAST_BYTES if self._fits(call, first) else self._piece_bytes
            rest, first = wire.cut_off(first, last_bytes)
            if rest:
                await self._write_in_pieces(call, rest)
        self._hold_unread(call, first)
        return first

    def await_caller(self, call: Call, since_s: float) -> None:
        """Give the caller ``caller_timeout_s`` from ``since_s`` to send or read something."""
        call.due_s = since_s + self._limits.current.caller_timeout_s
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
        if call.artifact:
            answers = self._pinned[call.artifact]
            del answers[call]
            if not answers:
                del self._pinned[call.artifact]
                self.pinned_bytes -= call.artifact.size_bytes

    def wake(self) -> None:
        """Let those go on that wait to be read and may be."""
        for turn, caller in self._turns.items():
            if self.requests.room(caller) > 0 and not turn.done():
                turn.set_result(None)

    def _half(self) -> int:
        return max(self._limits.current.receive_bytes // 2, 2 * self._message_bytes)

    @property
    def _piece_bytes(self) -> int:
        limits = self._limits.current
        return max(_LEAST_PIECE_BYTES, limits.send_bytes // (2 * limits.calls))

    async def _turn(self, call: Call) -> None:
        """Wait until the caller holds less of the requests than it leaves free."""
        self.await_caller(call, time.monotonic())
        try:
            while self.requests.room(call.caller) <= 0:
                turn = asyncio.get_running_loop().create_future()
                self._turns[turn] = call.caller
                try:
                    await turn
                finally:
                    del self._turns[turn]
        finally:
            self._waiting.pop(call, None)

    def _arrived(self, call: Call) -> None:
        self._arriving.add(call.caller, -call.arriving_bytes)
        call.arriving_bytes = 0

    def _hold_unread(self, call: Call, message: bytes) -> None:
        """Count a message. Raises COMPILE_QUEUE_FULL for one that cannot be cut and is too large.

        All else is so small that there is room for it in every call.
        """
        if len(message) > self._piece_bytes + _LAST_BYTES and not self._fits(call, message):
            raise errors.sending_too_much(self._unread.total)
        call.unread_bytes = len(message)
        self._unread.add(call.caller, call.unread_bytes)
        self.await_caller(call, time.monotonic())

    async def _write_in_pieces(self, call: Call, message: bytes) -> None:
        whole = len(message) <= self._piece_bytes or self._fits(call, message)
        for piece in (message,) if whole else wire.cut(message, self._piece_bytes):
            await self.write(call, piece)

    def _fits(self, call: Call, message: bytes) -> bool:
        return self._unread.fits(call.caller, len(message))

    def _pin(self, call: Call, artifact: model.Artifact) -> None:
        """Count an artifact that is being sent. Raises COMPILE_QUEUE_FULL."""
        if artifact not in self._pinned:
            if not self._has_room(call.caller, artifact):
                raise errors.sending_too_much(self.pinned_bytes)
            self._pinned[artifact] = {}
            self.pinned_bytes += artifact.size_bytes
        self._pinned[artifact][call] = None
        call.artifact = artifact

    def _has_room(self, caller: str, artifact: model.Artifact) -> bool:
        """Return whether one more artifact may be sent. One alone may, however large."""
        limit_bytes = self._limits.current.send_pinned_bytes
        if 2 * (self.pinned_bytes + artifact.size_bytes) <= limit_bytes:
            return True  # Whoever holds all of it leaves as much free.
        share = FairShare(lambda: limit_bytes)
        for pinned, answers in self._pinned.items():
            if not self._in_memory(pinned):
                share.add(next(iter(answers)).caller, pinned.size_bytes)
        if self._in_memory(artifact):
            # The memory tier may have dropped artifacts since their answers began. While these
            # are above the limit no answer begins, for the tier may drop its artifact too.
            return share.free >= 0
        return not share.total or share.fits(caller, artifact.size_bytes)

    def _look(self) -> None:
        """End the calls whose callers take too long, and count requests that arrive slowly."""
        now = time.monotonic()
        for call in list(self._waiting):
            if now >= min(call.due_s, call.answer_due_s):
                self._end_late(call, now)
            elif now - call.reads_since_s >= _SLOW_S and not call.arriving_bytes:
                self._count_slow(call)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK_S, self._look) if self._waiting else None

    def _end_late(self, call: Call, now: float) -> None:
        limit_s = self._limits.current.caller_timeout_s
        if call.refusal:  # Its caller does not read that either.
            self._cancel(call, call.refusal)
        elif call.unread_bytes:
            whole = now >= call.answer_due_s
            self._cancel(call, errors.reader_too_slow(limit_s * (_WHOLE_ANSWER if whole else 1)))
        elif call.reads_since_s < now:
            self._cancel(call, errors.request_too_slow(limit_s))
        else:
            self._cancel(call, errors.receiving_too_much(self.receive_bytes))

    def _count_slow(self, call: Call) -> None:
        try:
            if self._arriving.room(call.caller) < self._message_bytes:
                self._make_room(call)
        except WasmkilnError as refusal:
            self._cancel(call, refusal)
            return
        call.arriving_bytes = self._message_bytes
        self._arriving.add(call.caller, self._message_bytes)

    def _make_room(self, call: Call) -> None:
        """End a slow request of the caller that holds most. Raises COMPILE_QUEUE_FULL.

        Unless it holds but one more than the caller of ``call``.
        """
        held, refusal = self._arriving.held, errors.receiving_too_much(self._arriving.total)
        slow = [each for each in self._waiting if each.arriving_bytes]
        most = max(slow, key=lambda each: held(each.caller), default=call)
        if held(most.caller) <= held(call.caller) + self._message_bytes:
            raise refusal
        self._cancel(most, refusal)

    def _cancel(self, call: Call, refusal: WasmkilnError) -> None:
        call.refusal, call.answer_due_s = refusal, math.inf
        self._waiting.pop(call, None)
        if call.task:
            call.task.cancel()
