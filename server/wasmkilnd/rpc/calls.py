"""What every call gets: an id, a log line, a place in the metrics, and errors that make sense."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
from grpc import aio

from wasmkilnd.errors import Reason, WasmkilnError, server_draining
from wasmkilnd.rpc import status

log = structlog.get_logger("wasmkilnd.rpc")

_REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")


Context: TypeAlias = Any  # a grpc.aio.ServicerContext; grpcio ships no types


@dataclass(slots=True)
class CallNote:
    """What a call turned out to be about, for its log line."""

    context: Context
    module: str = ""
    engine: str = ""
    origin: str = ""
    queue_ms: float | None = None
    compile_ms: float | None = None
    bytes: int | None = None
    _request_id: str = ""

    @property
    def request_id(self) -> str:
        """The caller's own id for the call if it sent a sensible one, else a new one."""
        if not self._request_id:
            self._request_id = _request_id(self.context)
        return self._request_id


class CallGate:
    """Counts the calls that run, and can be closed to new ones. For one event loop."""

    def __init__(self) -> None:
        self.running = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Let a call in. Raises SERVER_DRAINING once closed."""
        if self._closed:
            raise server_draining()
        self.running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Note that a call has ended."""
        self.running -= 1
        if not self.running:
            self._idle.set()

    def close(self) -> None:
        """Refuse new calls from now on."""
        self._closed = True

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()


Behavior = Callable[[Any, Context, CallNote], Awaitable[Any]]
RecordCall = Callable[[str, str, float], None]


def observed(
    method: str, behavior: Behavior, record: RecordCall, gate: CallGate
) -> Callable[..., Awaitable[Any]]:
    """Wrap the behavior of one RPC.

    A WasmkilnError becomes its row of the error table; anything else that is
    raised becomes INTERNAL with the request id, and goes to the log whole. What
    is counted and logged of a call is so right after its answer, not before it:
    the caller does not wait for our diary.
    """

    def ended(note: CallNote, code: grpc.StatusCode, reason: str, seconds: float) -> None:
        record(method, code.name, seconds)
        _log_call(method, note, code.name, reason, seconds)

    async def call(request: Any, context: Context) -> Any:
        started = time.perf_counter()
        note = CallNote(context)
        code = grpc.StatusCode.OK
        reason = ""
        try:
            gate.enter()
            try:
                return await behavior(request, context, note)
            finally:
                gate.leave()
        except WasmkilnError as failure:
            code, reason = status.CODES[failure.reason], failure.reason.value
            await _abort(context, failure)
        except asyncio.CancelledError:
            # The caller hung up, or its deadline passed; grpcio tells it which.
            code = grpc.StatusCode.CANCELLED
            raise
        except aio.AbortError:
            raise
        except Exception:
            code, reason = grpc.StatusCode.INTERNAL, Reason.INTERNAL.value
            log.exception("call failed", method=method, request_id=note.request_id)
            await _abort(
                context,
                WasmkilnError(
                    Reason.INTERNAL,
                    f"the daemon failed; its log tells more under request {note.request_id}",
                    request_id=note.request_id,
                ),
            )
        finally:
            seconds = time.perf_counter() - started
            asyncio.get_running_loop().call_soon(ended, note, code, reason, seconds)

    return call


async def _abort(context: Context, failure: WasmkilnError) -> None:
    answer = status.to_status(failure)
    await context.abort(
        status.CODES[failure.reason],
        answer.message,
        ((status.DETAILS_KEY, answer.SerializeToString()),),
    )


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == _REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex[:16]


def _log_call(method: str, note: CallNote, code: str, reason: str, seconds: float) -> None:
    words: dict[str, Any] = {
        "method": method,
        "request_id": note.request_id,
        "code": code,
        "duration_ms": round(seconds * 1e3, 3),
    }
    if reason:
        words["reason"] = reason
    for name in ("module", "engine", "origin", "queue_ms", "compile_ms", "bytes"):
        if value := getattr(note, name):
            words[name] = value
    log.info("call", **words)
