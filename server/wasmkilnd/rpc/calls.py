"""What every call gets: admission, a request id, a log line, a count, and errors by the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from wasmkilnd.account import Account, unlimited
from wasmkilnd.errors import (
    Reason,
    WasmkilnError,
    forget_frames,
    server_draining,
    too_many_calls,
)
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import LOCAL_HITS, Entrance, Identity, TrafficLimits
from wasmkilnd.ports import Auditor, CallTrace, Guard, Tracing
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc import audited
from wasmkilnd.rpc.connections.call import Call, CallsUnderWay, Context, this_task
from wasmkilnd.rpc.flow.receive import Receiver
from wasmkilnd.rpc.flow.send import Sender
from wasmkilnd.rpc.wire import status
from wasmkilnd.rpc.wire.headers import SerializedAnswer
from wasmkilnd.rpc.wire.requests import Requests

log = structlog.get_logger("wasmkilnd.rpc")

_COMPILE = "/wasmkiln.v1.ModuleService/Compile"
_LOCAL_HITS = frozenset(origin.value for origin in LOCAL_HITS)


class CallGate:
    """Counts the calls that run, refuses those above the limit, and can be closed to new ones.

    For one event loop. A caller may run at most as many calls as are still free for others.
    """

    def __init__(self, limits: Reloadable[TrafficLimits]) -> None:
        self._held = FairShare(lambda: limits.current.calls)
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._held.total

    def enter(self, caller: str) -> None:
        """Let a call in. Raises COMPILE_QUEUE_FULL, or SERVER_DRAINING once closed."""
        if self._closed:
            raise server_draining()
        if self._held.room(caller) < 1:
            raise too_many_calls(self.running, self._held.held(caller))
        self._held.add(caller, 1)
        self._idle.clear()

    def leave(self, caller: str) -> None:
        """Note that a call has ended."""
        self._held.add(caller, -1)
        if not self.running:
            self._idle.set()

    def close(self) -> None:
        """Refuse new calls from now on."""
        self._closed = True

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()


class CallRecorder(Protocol):
    """Counts calls for the metrics. Fast, safe from any thread, and never raises."""

    def rpc(self, method: str, code: str, seconds: float, limit: str) -> None:
        """Count a call that ended with a gRPC code; ``limit`` names the limit it met, if any."""
        ...

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """Note a Compile call for the list of recent ones: see ``ports.Recorder``."""
        ...

    def connections_closed(self, cause: str, count: int) -> None:
        """Count connections that the daemon closed to protect other callers."""
        ...

    def bytes_sent(self, size_bytes: int) -> None:
        """Count artifact bytes that were sent to a caller."""
        ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """The gates and budgets of all calls."""

    gate: CallGate
    grpcio_gate: CallGate
    """For the services that come with grpcio."""
    under_way: CallsUnderWay
    receiver: Receiver
    sender: Sender
    recorder: CallRecorder
    guard: Guard
    auditor: Auditor
    entrance: Entrance
    account_of: Callable[[Identity], Account] = unlimited
    tracing: Tracing | None = None
    """Follows the calls that were let in; None if nobody does."""


Behavior = Callable[[Any, Call], Awaitable["Message | SerializedAnswer | bytes"]]
"""One RPC of a servicer: takes a request, or its Parts, and returns an answer.

An answer of bytes is a message that is serialized already."""


def handler(
    method: str, parse: Callable[[bytes], Any], behavior: Behavior, traffic: Traffic
) -> Callable[..., Awaitable[bytes | None]]:
    """Return the handler of one RPC, to be registered as one of a stream of requests.

    On the wire there is no difference. A stream lets the daemon read a request only when there
    is room for it. The handler of a behavior with a SerializedAnswer returns its last message:
    register it as one with a single answer. The daemon builds nothing of a request that exceeds
    ``bounds.TABLE``. A WasmkilnError becomes its row of the error table; any other exception
    becomes INTERNAL with the request id, and goes to the log whole. The daemon counts and logs a
    call right after its answer, so that the caller does not wait for that.
    """
    requests = Requests(method, parse, traffic.receiver)

    async def request(call: Call) -> Any:
        message, call.release_request = await requests.read(call.context, call.caller, call.account)
        call.start_work()
        return message

    async def answer(call: Call) -> bytes | None:
        # No variable here keeps the request: it may be megabytes, and the call may wait long.
        found = await behavior(await request(call), call)
        audited.answered(traffic.auditor, method, call)
        if isinstance(found, SerializedAnswer):
            last = await traffic.sender.send_but_last(
                call.context, call.caller, found.first, found.artifact
            )
            if found.artifact_bytes:
                traffic.recorder.bytes_sent(found.artifact_bytes)
            return last
        message = found if isinstance(found, bytes) else found.SerializeToString()
        await traffic.sender.send(call.context, call.caller, message)
        return None

    async def handle(_: Any, context: Context) -> bytes | None:
        call = Call(context, traffic.entrance)
        ended = _Ended(method, call, traffic)
        # gRPC's task for this call ends when the answer is on its way, its last message included.
        this_task().add_done_callback(ended)
        try:
            call.admitted(traffic.guard.admit(method, traffic.entrance, call.credentials))
            traffic.gate.enter(call.caller)
            ended.entered = True
            if traffic.tracing:
                ended.trace = traffic.tracing.begin(method, call.metadata())
            call.charge_to(traffic.account_of(call.identity))
            with traffic.under_way.answering(call):
                return await answer(call)
        except WasmkilnError as failure:
            ended.code, ended.reason = status.CODES[failure.reason], failure.reason.value
            ended.limit = failure.metadata.get("limit", "")
            audited.failed(traffic.auditor, method, call, failure)
            forget_frames(failure)
            if not context.done():
                await abort(context, failure)
        except asyncio.CancelledError as gone:
            # The caller hung up, its deadline passed, or the server stops. grpcio ends the call.
            ended.code = grpc.StatusCode.CANCELLED
            audited.left(traffic.auditor, method, call)
            forget_frames(gone)
            raise
        except aio.InternalError:
            # gRPC could not send or receive: the connection has gone, and with it the caller.
            ended.code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from None
        except Exception as defect:
            ended.code, ended.reason = grpc.StatusCode.INTERNAL, Reason.INTERNAL.value
            log.exception("call failed", method=method, request_id=call.request_id)
            forget_frames(defect)
            failed = WasmkilnError(
                Reason.INTERNAL,
                f"the daemon failed: see its log for request {call.request_id}",
                request_id=call.request_id,
            )
            audited.failed(traffic.auditor, method, call, failed)
            await abort(context, failed)
        finally:
            call.release_request()
        return None

    return handle


@dataclass(slots=True)
class _Ended:
    """Does what is left when a call has ended: no caller waits for that."""

    method: str
    call: Call
    traffic: Traffic
    entered: bool = False
    """Whether the gate let the call in."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    limit: str = ""
    trace: CallTrace | None = None
    started_s: float = field(default_factory=time.perf_counter)

    def __call__(self, _: asyncio.Task[Any]) -> None:
        if self.entered:
            self.traffic.gate.leave(self.call.caller)
        self.call.account.leave()
        seconds = time.perf_counter() - self.started_s
        self.traffic.recorder.rpc(self.method, self.code.name, seconds, self.limit)
        trace_id = self.trace.trace_id if self.trace else ""
        _log_call(self.method, self.call, self.code.name, self.reason, seconds, trace_id)
        if self.trace:
            about = {name: getattr(self.call, name) for name in _TRACED}
            if self.code is not grpc.StatusCode.OK:
                del about["engine"]  # It may be any text that the caller sent.
            self.trace.end(self.code.name, self.reason, about)
        if self.call.origin not in _LOCAL_HITS and self.method == _COMPILE:
            self._note_compile(seconds)

    def _note_compile(self, seconds: float) -> None:
        call = self.call
        reason = self.reason or (self.code.name if self.code is not grpc.StatusCode.OK else "")
        # A client asks by digest first and uploads then, so that this reason is no failure. Of a
        # call that did not say what to compile, there is nothing to tell.
        if call.module and reason != Reason.MODULE_NOT_LOADED.value:
            origin = "" if reason else call.origin
            self.traffic.recorder.compile_ended(call.module, call.engine, origin, reason, seconds)


async def abort(context: Context, failure: WasmkilnError) -> None:
    """End a call with its row of the error table.

    grpcio raises an exception in the handler, and keeps it for as long as the connection is
    open. So drop its traceback, which holds the call and its answer.
    """
    answer = status.to_status(failure)
    try:
        await context.abort(
            status.CODES[failure.reason],
            answer.message,
            ((status.DETAILS_KEY, answer.SerializeToString()),),
        )
    except aio.AbortError as aborted:
        forget_frames(aborted)


# The module's digest is the caller's own, and is in the log only.
_TRACED = ("engine", "origin", "bytes")


def _log_call(
    method: str, call: Call, code: str, reason: str, seconds: float, trace_id: str
) -> None:
    words: dict[str, Any] = {
        "method": method,
        "request_id": call.request_id,
        "code": code,
        "duration_ms": round(seconds * 1e3, 3),
    }
    if reason:
        words["reason"] = reason
    if trace_id:
        words["trace_id"] = trace_id
    for name in ("module", "engine", "origin", "queue_ms", "compile_ms", "bytes"):
        if value := getattr(call, name):
            words[name] = value
    log.info("call", **words)
