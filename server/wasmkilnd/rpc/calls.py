"""What every call gets: admission, a request id, a log line, a count, errors by the table, audit.

``Rpc`` is one RPC at one entrance, those of health, reflection and channelz too: its calls pass the
guard and a gate, and it tells how each ended. ``unary`` makes one of a behavior, which takes a
request and returns an answer. The daemon counts and logs a call right after its answer, so that
the caller does not wait for that.

A call gets one line of the audit at most, before its answer is sent. A Compile call that a tier
serves gets none: it does nothing that somebody would have to answer for, and its path is the
fastest. Nor does one by a digest that no tier has: clients ask like this before they upload.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from wasmkilnd import model
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.quota import Quota, unlimited
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.traffic import Call, Context, Gate, Traffic
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.audit import Audit, Event
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.tracing import Tracing

log = structlog.get_logger("wasmkilnd.rpc")

_MODULES = "/wasmkiln.v1.ModuleService/"
_COMPILE = f"{_MODULES}Compile"
_EVENTS: dict[str, Event] = {
    _COMPILE: "compile",
    f"{_MODULES}Load": "upload",
    f"{_MODULES}Upload": "upload",
}
_REFUSALS = (
    *(Reason.CREDENTIALS_MISSING, Reason.CREDENTIALS_INVALID, Reason.ROLE_MISSING),
    Reason.QUOTA_EXCEEDED,
)
_LOCAL_HITS = frozenset(origin.value for origin in model.LOCAL_HITS)
_MADE = (model.Origin.COMPILED.value, model.Origin.JOINED_FLIGHT.value)
_LOGGED = ("module", "engine", "origin", "queue_ms", "compile_ms", "bytes")
# The module's digest is the caller's own, and is in the log only.
_TRACED = ("engine", "origin", "bytes")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where calls come in, and who limits, guards, counts, audits and traces them."""

    traffic: Traffic
    metrics: Metrics
    guard: AccessGuard
    auditor: Audit
    quota_of: Callable[[model.Identity], Quota] = unlimited
    # Follows the calls that were let in; None if nobody does.
    tracing: Tracing | None = None
    entrance: model.Entrance = model.PLAINTEXT


Answer: TypeAlias = Message | messages.SerializedAnswer | bytes
# One RPC of a servicer: takes a request, and returns an answer. One of bytes is a message
# that is serialized already. An RPC with many requests takes what reads the next, None after the
# last; the one before counts no more then.
Behavior: TypeAlias = Callable[[Any, Call], Awaitable[Answer]]


def unary(
    path: str,
    parse: Callable[[bytes], Any],
    behavior: Behavior,
    entry: Entry,
    *,
    probe: bool = False,
    streams: bool = False,
) -> Any:
    """Return grpc's handler of an RPC whose calls have one request, or with ``streams`` many.

    To gRPC all have a stream of requests; on the wire there is no difference. A stream lets the
    daemon read a request only when there is room for it. And they have a single answer: the last
    message. ``probe`` calls do not count among those of ``max_calls``.
    """
    traffic, build = entry.traffic, messages.reader(path, parse)
    most_bytes = traffic.most_bytes(path)

    async def following(call: Call) -> Any:
        call.release_request()
        raw = await traffic.read(call, most_bytes, piece=call.arrived)
        return None if raw is None else build(raw)

    async def answer(call: Call) -> bytes:
        # No variable here keeps the request: it may be megabytes, and the call may wait long.
        if streams:
            found = await behavior(partial(following, call), call)
        else:
            found = await act(build(await traffic.read(call, most_bytes) or b""), call)
        if entry.auditor.on:
            rpc.audit(call, "OK")
        if not isinstance(found, messages.SerializedAnswer):
            message = found if isinstance(found, bytes) else found.SerializeToString()
            return traffic.hold(call, message)
        first, artifact, artifact_bytes, offset_bytes = found
        if artifact:
            first = await traffic.send(call, first, artifact, offset_bytes)
        else:
            traffic.hold(call, first)
        if artifact_bytes:
            entry.metrics.count("sent_bytes", by=artifact_bytes)
        return first

    async def in_turn(request: Any, call: Call) -> Answer:
        async with traffic.turns((call.caller, probe)):
            return await behavior(request, call)

    act = behavior if path in messages.MODULE_FIELDS else in_turn
    rpc = Rpc(path, entry, answer, traffic.probes if probe else traffic.calls)
    return grpc.stream_unary_rpc_method_handler(rpc.handle)


class Rpc:
    """One RPC at one entrance. A path of HTTP is one, too: see ``rpc.http``."""

    call_type = Call

    def __init__(
        self, path: str, entry: Entry, answer: Callable[[Call], Awaitable[Any]], gate: Gate
    ) -> None:
        """``answer`` answers a call that ``gate`` has let in."""
        self._path = path
        self._entry = entry
        self._answer = answer
        self._gate = gate
        operating = path.startswith("/wasmkiln.v1.AdminService/")
        self._event: Event | None = "admin" if operating else _EVENTS.get(path)

    async def handle(self, _: Any, context: Context) -> Any:
        """Answer a call: return what ``answer`` returned.

        A WasmkilnError becomes its row of the error table; any other exception becomes INTERNAL
        with the request id, and goes to the log whole.
        """
        entry, call = self._entry, self.call_type(context, self._entry.entrance)
        # The library's task for this call ends when the answer is on its way, its end included.
        task: Any = asyncio.current_task()
        call.task = task
        task.add_done_callback(partial(self._ended, call))
        try:
            call.admitted(entry.guard.admit(self._path, entry.entrance, call.credentials))
            self._gate.enter(call.caller)
            call.entered = True
            if entry.tracing:
                call.trace = entry.tracing.begin(self._path, call.metadata)
            if call.identity.quota:
                call.quota = entry.quota_of(call.identity)
                call.quota.call()
            return await self._answer(call)
        except WasmkilnError as failure:
            await self._fail(call, failure)
        except asyncio.CancelledError as gone:
            forget_frames(gone)
            if call.refusal is None:
                # The caller hung up, its deadline passed, or the server stops.
                call.code = "CANCELLED"
                if call.arrived:
                    self.audit(call, call.code)
                raise
            task.uncancel()
            await self._fail(call, call.refusal)
        except aio.AbortError as aborted:
            # Health and channelz tell so that there is nothing of the name that they were asked.
            call.code = "NOT_FOUND"
            forget_frames(aborted)
        except aio.BaseError:
            # gRPC could not send or receive: the connection has gone, and with it the caller.
            call.code = "CANCELLED"
            raise asyncio.CancelledError from None
        except Exception as defect:
            request_id = call.request_id
            log.exception("call failed", method=self._path, request_id=request_id)
            forget_frames(defect)
            message = f"the daemon failed: see its log for request {request_id}"
            await self._fail(call, WasmkilnError(Reason.INTERNAL, message, request_id=request_id))
        return None

    async def _fail(self, call: Call, failure: WasmkilnError) -> None:
        """End a call with its row of the error table.

        grpcio raises an exception in the handler, and keeps it for as long as the connection is
        open. So drop its traceback, which holds the call and its answer. The status stands behind
        what the caller has not read yet, so that it has its time too.
        """
        call.refusal = failure
        self.audit(call, failure.reason.code, failure)
        forget_frames(failure)
        if call.context.done():
            return
        self._entry.traffic.await_caller(call)
        await self.refuse(call, failure)

    async def refuse(self, call: Call, failure: WasmkilnError) -> None:
        """Tell the caller why the call fails."""
        answer = messages.to_status(failure)
        details = ((messages.DETAILS_KEY, answer.SerializeToString()),)
        try:
            await call.context.abort(messages.CODES[failure.reason], answer.message, details)
        except aio.AbortError as aborted:
            forget_frames(aborted)

    def _ended(self, call: Call, _: asyncio.Task[Any]) -> None:
        """Do what is left when a call has ended: no caller waits for that."""
        entry = self._entry
        entry.traffic.end(call)
        if call.entered:
            self._gate.add(call.caller, -1)
        code, reason, limit, failure = call.code, "", "", call.refusal
        if failure:
            code, reason = failure.reason.code, failure.reason.value
            limit = failure.metadata.get("limit", "")
        seconds = time.perf_counter() - call.started_s
        entry.metrics.rpc(self._path, code, seconds, limit)
        words: dict[str, Any] = {
            "method": self._path,
            "request_id": call.request_id,
            "code": code,
            "duration_ms": round(seconds * 1e3, 3),
        }
        for name in _LOGGED:
            if value := getattr(call, name):
                words[name] = value
        if reason:
            words["reason"] = reason
        if call.trace:
            words["trace_id"] = call.trace.trace_id
        # Probes come every few seconds: those that went well would hide the rest.
        quiet = code in ("OK", "CANCELLED") and self._path.startswith("/grpc.")
        logs.note_call("debug" if quiet else "info", words)
        if call.trace:
            about = {name: getattr(call, name) for name in _TRACED}
            if code != "OK":
                del about["engine"]  # It may be any text that the caller sent.
            call.trace.end(code, reason, about)
        # A client asks by digest first and uploads then, so that this reason is no failure. Of a
        # call that did not say what to compile, there is nothing to tell.
        if self._path != _COMPILE or call.origin in _LOCAL_HITS or not call.module:
            return
        if reason != Reason.MODULE_NOT_LOADED.value:
            why = reason or ("" if code == "OK" else code)
            origin = "" if why else call.origin
            entry.metrics.compile_ended(call.module, call.engine, origin, why, seconds)

    def audit(self, call: Call, code: str, failure: WasmkilnError | None = None) -> None:
        """Write a call's line of the audit, if it gets one."""
        auditor, event, reason = self._entry.auditor, self._event, failure and failure.reason
        if not auditor.on or call.audited:
            return
        if reason in _REFUSALS:
            event = "refusal"
        elif code != "OK":
            if call.origin or reason in (Reason.MODULE_NOT_LOADED, Reason.UPLOAD_INTERRUPTED):
                return  # It was served, and could not be sent; or there was nothing to work on.
        elif event == "compile" and call.origin not in _MADE:
            return
        if not event:
            return
        call.audited = True
        kind, _, address = call.peer.partition(":")
        auditor.write(
            event,
            call.identity.name or (failure.identity if failure else ""),
            code,
            namespace=call.identity.namespace,
            peer=unquote(address) if kind in ("ipv4", "ipv6") else kind,
            method=self._path,
            reason=reason.value if reason else "",
            module=call.module,
            engine=call.engine,
            origin=call.origin if code == "OK" else "",
            request_id=call.request_id,
            **call.about,
        )
