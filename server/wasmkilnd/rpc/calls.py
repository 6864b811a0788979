"""What every call gets: admission, a request id, a log line, a count, errors by the table, audit.

``handler`` makes one RPC of a behavior, which takes a request and returns an answer.
``served`` is what all calls pass, those of health, reflection and channelz too: the guard, a
gate, and whatever ends the call. The daemon counts and logs a call right after its answer, so
that the caller does not wait for that.

A call gets one line of the audit at most, before its answer is sent. A Compile call that a tier
serves gets none: it does nothing that somebody would have to answer for, and its path is the
fastest. Nor does one by a digest that no tier has: clients ask like this before they upload.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from wasmkilnd import ports
from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.model import LOCAL_HITS, Entrance, Identity, Origin
from wasmkilnd.quota import Quota, unlimited
from wasmkilnd.rpc.messages import (
    CODES,
    DETAILS_KEY,
    SMALL_BYTES,
    SerializedAnswer,
    reader,
    to_status,
)
from wasmkilnd.rpc.traffic import WITH_MODULE, Call, Context, Gate, Traffic
from wasmkilnd.telemetry.tracing import CallTrace, Tracing

log = structlog.get_logger("wasmkilnd.rpc")

_MODULES = "/wasmkiln.v1.ModuleService/"
_OPERATING = "/wasmkiln.v1.AdminService/"
_COMPILE = f"{_MODULES}Compile"
_EVENTS = {_COMPILE: ports.AuditEvent.COMPILE, f"{_MODULES}Load": ports.AuditEvent.UPLOAD}
_REFUSALS = frozenset(
    {
        Reason.CREDENTIALS_MISSING,
        Reason.CREDENTIALS_INVALID,
        Reason.ROLE_MISSING,
        Reason.QUOTA_EXCEEDED,
    }
)
_LOCAL_HITS = frozenset(origin.value for origin in LOCAL_HITS)
_MADE = (Origin.COMPILED.value, Origin.JOINED_FLIGHT.value)
_QUIET = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)


class CallRecorder(Protocol):
    """Counts calls for the metrics. Fast, safe from any thread, and never raises."""

    def rpc(self, method: str, code: str, seconds: float, limit: str) -> None:
        """Count a call that ended with a gRPC code; ``limit`` names the limit it met, if any."""
        ...

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """Note a Compile call for the list of recent ones: see ``Metrics``."""
        ...

    def bytes_sent(self, size_bytes: int) -> None:
        """Count artifact bytes that were sent to a caller."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Where calls come in, and who limits, guards, counts, audits and traces them."""

    traffic: Traffic
    recorder: CallRecorder
    guard: ports.Guard
    auditor: ports.Auditor
    entrance: Entrance
    quota_of: Callable[[Identity], Quota] = unlimited
    tracing: Tracing | None = None
    """Follows the calls that were let in; None if nobody does."""


Answer = Message | SerializedAnswer | bytes
Behavior = Callable[[Any, Call], Awaitable[Answer]]
"""One RPC of a servicer: takes a request, and returns an answer.

An answer of bytes is a message that is serialized already."""
Handler = Callable[[Any, Context], Awaitable[bytes | None]]


def handler(
    method: str,
    parse: Callable[[bytes], Any],
    behavior: Behavior,
    entry: Entry,
    *,
    probe: bool = False,
) -> Handler:
    """Return the handler of one RPC, to be registered as one of a stream of requests.

    On the wire there is no difference. A stream lets the daemon read a request only when there
    is room for it. The handler returns the last message of the answer: register it as one with a
    single answer. ``probe`` calls do not count among those of ``max_calls``.
    """
    build, most_bytes = reader(method, parse), entry.traffic.most_bytes(method)

    async def request(call: Call) -> Any:
        raw = await entry.traffic.read(call, most_bytes) or b""
        if len(raw) > SMALL_BYTES:
            entry.traffic.hold_more(call, len(raw))  # protobuf copies the module.
        built = build(raw)
        call.working = True
        return built

    async def answer(call: Call) -> bytes:
        # No variable here keeps the request: it may be megabytes, and the call may wait long.
        found = await act(await request(call), call)
        if entry.auditor.on:
            _audit_answer(entry.auditor, method, call)
        if isinstance(found, SerializedAnswer):
            last = await entry.traffic.send(call, found.first, found.artifact)
            if found.artifact_bytes:
                entry.recorder.bytes_sent(found.artifact_bytes)
            return last
        message = found if isinstance(found, bytes) else found.SerializeToString()
        return await entry.traffic.send(call, message)

    async def in_turn(request: Any, call: Call) -> Answer:
        async with entry.traffic.turns((call.caller, probe)):
            return await behavior(request, call)

    act = behavior if method in WITH_MODULE else in_turn
    gate = entry.traffic.probes if probe else entry.traffic.calls
    return served(method, answer, entry, gate)


def served(
    method: str,
    answer: Callable[[Call], Awaitable[bytes | None]],
    entry: Entry,
    gate: Gate,
    *,
    spare: int = 0,
) -> Handler:
    """Return the handler of calls that ``answer`` answers, and that leave ``spare`` places free.

    A WasmkilnError becomes its row of the error table; any other exception becomes INTERNAL with
    the request id, and goes to the log whole.
    """

    async def handle(_: Any, context: Context) -> bytes | None:
        call = Call(context, entry.entrance)
        ended = _Ended(method, call, entry, gate)
        # gRPC's task for this call ends when the answer is on its way, its last message included.
        call.task = this_task()
        call.task.add_done_callback(ended)
        try:
            call.admitted(entry.guard.admit(method, entry.entrance, call.credentials))
            gate.enter(call.caller, spare)
            ended.entered = True
            if entry.tracing:
                ended.trace = entry.tracing.begin(method, call.metadata())
            call.quota = entry.quota_of(call.identity)
            call.quota.call()
            return await answer(call)
        except WasmkilnError as failure:
            await _fail(entry, method, call, failure, ended)
        except asyncio.CancelledError as gone:
            forget_frames(gone)
            if call.refusal is None:
                # The caller hung up, its deadline passed, or the server stops.
                ended.code = grpc.StatusCode.CANCELLED
                if entry.auditor.on and call.working and not call.origin:
                    _audit(entry.auditor, _event(method), method, call, "CANCELLED")
                raise
            this_task().uncancel()
            await _fail(entry, method, call, call.refusal, ended)
        except aio.AbortError as aborted:
            # Health and channelz tell so that there is nothing of the name that they were asked.
            ended.code = grpc.StatusCode.NOT_FOUND
            forget_frames(aborted)
        except aio.BaseError:
            # gRPC could not send or receive: the connection has gone, and with it the caller.
            ended.code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from None
        except Exception as defect:
            log.exception("call failed", method=method, request_id=call.request_id)
            forget_frames(defect)
            internal = WasmkilnError(
                Reason.INTERNAL,
                f"the daemon failed: see its log for request {call.request_id}",
                request_id=call.request_id,
            )
            await _fail(entry, method, call, internal, ended)
        return None

    return handle


def this_task() -> asyncio.Task[Any]:
    """Return the task that answers a call: the running one."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("calls are answered in tasks")
    return task


async def _fail(
    entry: Entry, method: str, call: Call, failure: WasmkilnError, ended: _Ended
) -> None:
    """End a call with its row of the error table.

    grpcio raises an exception in the handler, and keeps it for as long as the connection is
    open. So drop its traceback, which holds the call and its answer. The status stands behind
    what the caller has not read yet, so that it has its time too.
    """
    ended.code, ended.reason = CODES[failure.reason], failure.reason.value
    ended.limit = failure.metadata.get("limit", "")
    if entry.auditor.on:
        _audit_failure(entry.auditor, method, call, failure)
    forget_frames(failure)
    if call.context.done():
        return
    answer = to_status(failure)
    call.refusal = failure
    entry.traffic.await_caller(call, time.monotonic())
    try:
        await call.context.abort(
            CODES[failure.reason],
            answer.message,
            ((DETAILS_KEY, answer.SerializeToString()),),
        )
    except aio.AbortError as aborted:
        forget_frames(aborted)


@dataclass(slots=True)
class _Ended:
    """Does what is left when a call has ended: no caller waits for that."""

    method: str
    call: Call
    entry: Entry
    gate: Gate
    entered: bool = False
    """Whether the gate let the call in."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    limit: str = ""
    trace: CallTrace | None = None
    started_s: float = field(default_factory=time.perf_counter)

    def __call__(self, _: asyncio.Task[Any]) -> None:
        call, entry = self.call, self.entry
        entry.traffic.end(call)
        if self.entered:
            self.gate.leave(call.caller)
        if call.refusal and not self.reason:  # It was cut off at its last message.
            self.code, self.reason = CODES[call.refusal.reason], call.refusal.reason.value
            self.limit = call.refusal.metadata.get("limit", "")
        seconds = time.perf_counter() - self.started_s
        entry.recorder.rpc(self.method, self.code.name, seconds, self.limit)
        self._log(seconds)
        if self.trace:
            about = {name: getattr(call, name) for name in _TRACED}
            if self.code is not grpc.StatusCode.OK:
                del about["engine"]  # It may be any text that the caller sent.
            self.trace.end(self.code.name, self.reason, about)
        # A client asks by digest first and uploads then, so that this reason is no failure. Of a
        # call that did not say what to compile, there is nothing to tell.
        if (
            self.method == _COMPILE
            and call.origin not in _LOCAL_HITS
            and call.module
            and self.reason != Reason.MODULE_NOT_LOADED.value
        ):
            reason = self.reason or ("" if self.code is grpc.StatusCode.OK else self.code.name)
            origin = "" if reason else call.origin
            entry.recorder.compile_ended(call.module, call.engine, origin, reason, seconds)

    def _log(self, seconds: float) -> None:
        words: dict[str, Any] = {
            "method": self.method,
            "request_id": self.call.request_id,
            "code": self.code.name,
            "duration_ms": round(seconds * 1e3, 3),
        }
        if self.reason:
            words["reason"] = self.reason
        if self.trace:
            words["trace_id"] = self.trace.trace_id
        for name in ("module", "engine", "origin", "queue_ms", "compile_ms", "bytes"):
            if value := getattr(self.call, name):
                words[name] = value
        # Probes come every few seconds: those that went well would hide the rest.
        quiet = self.code in _QUIET and self.method.startswith("/grpc.")
        (log.debug if quiet else log.info)("call", **words)


# The module's digest is the caller's own, and is in the log only.
_TRACED = ("engine", "origin", "bytes")


def _event(method: str) -> ports.AuditEvent | None:
    return ports.AuditEvent.ADMIN if method.startswith(_OPERATING) else _EVENTS.get(method)


def _audit_answer(auditor: ports.Auditor, method: str, call: Call) -> None:
    """Write the line of a call that succeeded, if it gets one."""
    event = _event(method)
    if event is not ports.AuditEvent.COMPILE or call.origin in _MADE:
        _audit(auditor, event, method, call, "OK")


def _audit_failure(auditor: ports.Auditor, method: str, call: Call, failure: WasmkilnError) -> None:
    """Write the line of a call that failed or was refused, if it gets one."""
    refused = failure.reason in _REFUSALS
    if not refused and (call.origin or failure.reason is Reason.MODULE_NOT_LOADED):
        return  # it was served, and could not be sent; or there was nothing to compile
    event = ports.AuditEvent.REFUSAL if refused else _event(method)
    code = CODES[failure.reason].name
    _audit(auditor, event, method, call, code, failure.reason.value, failure.identity)


def _audit(
    auditor: ports.Auditor,
    event: ports.AuditEvent | None,
    method: str,
    call: Call,
    code: str,
    reason: str = "",
    identity: str = "",
) -> None:
    if not event or call.audited:
        return
    call.audited = True
    kind, _, address = call.peer.partition(":")
    auditor.write(
        ports.AuditLine(
            event,
            call.identity.name or identity,
            call.identity.namespace,
            unquote(address) if kind in ("ipv4", "ipv6") else kind,
            method,
            code,
            reason,
            call.module,
            call.engine,
            call.origin if code == "OK" else "",
            call.request_id,
            call.about,
        )
    )
