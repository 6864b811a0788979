"""Applies the daemon's limits to the services that come with grpcio.

Health, reflection and channelz register handlers of their own. ``LimitedServer`` wraps each, so
that its calls pass the gate, the bounds of requests and the budgets as all others do.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio

from wasmkilnd import errors
from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.rpc import audited
from wasmkilnd.rpc.calls import Traffic, abort
from wasmkilnd.rpc.connections.call import Call, Context
from wasmkilnd.rpc.wire.bounds import plan_of
from wasmkilnd.rpc.wire.requests import not_a_message, scan
from wasmkilnd.slices import in_slices

log = structlog.get_logger("wasmkilnd.rpc")

# A person at a terminal needs a few dozen.
_MAX_REQUESTS = 1000


class LimitedServer:
    """Accepts a service's handlers as a gRPC server does, and serves them within limits."""

    def __init__(self, server: Any, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve the methods of ``handlers``."""
        self._server.add_generic_rpc_handlers(
            tuple(_Limited(handler, self._traffic) for handler in handlers)
        )

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: generated code adds the same handlers by the method above."""


class _Limited(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    def __init__(self, handler: grpc.GenericRpcHandler, traffic: Traffic) -> None:
        self._handler = handler
        self._traffic = traffic

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, or None if it is not one of this service."""
        handler = self._handler.service(handler_call_details)
        if not handler:
            return None
        return _limited(handler, handler_call_details.method, self._traffic)


def _limited(handler: Any, method: str, traffic: Traffic) -> Any:
    """Return the handler as one of streams both ways, which is the same on the wire."""
    behavior = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    plan = plan_of(method)

    async def requests(context: Context, caller: str) -> AsyncIterator[Any]:
        for number in itertools.count():
            message, release = await traffic.receiver.read(context, caller, patient=number > 0)
            release()  # These messages are small, and not kept.
            if message is None:
                return
            if number == _MAX_REQUESTS:
                raise errors.invalid_request(
                    f"a call may have {_MAX_REQUESTS:,} requests at most: begin another call", ""
                )
            await in_slices(scan(message, plan))
            try:
                request = handler.request_deserializer(message)
            except DecodeError:
                raise not_a_message() from None
            del message
            yield request

    async def answers(context: Context, caller: str) -> AsyncIterator[Any]:
        asked: Any = requests(context, caller)
        if not handler.request_streaming:
            asked = await anext(asked, None)
            if asked is None:
                return
        if inspect.isasyncgenfunction(behavior):
            async for answer in behavior(asked, context):
                yield answer
        elif handler.response_streaming:
            await behavior(asked, context)
        else:
            answer = await behavior(asked, context)
            if answer is not None:  # None means that it has set an error status.
                yield answer

    def serialized(message: Any) -> Any:
        # Some behaviors write to the context themselves.
        return message if isinstance(message, bytes) else handler.response_serializer(message)

    async def handle(_: Any, context: Context) -> None:
        call = Call(context, traffic.entrance)
        try:
            call.admitted(traffic.guard.admit(method, traffic.entrance, call.credentials))
            traffic.grpcio_gate.enter(call.caller)
            try:
                with traffic.under_way.answering(call):
                    async for answer in answers(context, call.caller):
                        await traffic.sender.send(context, call.caller, serialized(answer))
            finally:
                traffic.grpcio_gate.leave(call.caller)
        except WasmkilnError as failure:
            audited.failed(traffic.auditor, method, call, failure)
            forget_frames(failure)
            if not context.done():
                await abort(context, failure)
        except aio.InternalError:  # The connection is closed.
            raise asyncio.CancelledError from None
        except aio.AbortError as aborted:  # The service has set the status.
            forget_frames(aborted)
        except Exception as defect:
            log.exception("call failed", method=method)
            forget_frames(defect)
            failed = WasmkilnError(Reason.INTERNAL, "the daemon failed: see its log")
            await abort(context, failed)

    return grpc.stream_stream_rpc_method_handler(handle, response_serializer=serialized)
