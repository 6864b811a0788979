"""Services that come with grpcio (health, reflection, channelz), held to our limits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import grpc
from grpc import aio

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.rpc.caller import caller_of
from wasmkilnd.rpc.calls import Context, Traffic, abort


class LimitedServer:
    """Takes a service's handlers as a server would, and has their requests read within limits."""

    def __init__(self, server: Any, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve what these handlers handle."""
        self._server.add_generic_rpc_handlers(
            tuple(_Limited(handler, self._traffic) for handler in handlers)
        )

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: what generated code registers here it has added above already."""


class _Limited(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    def __init__(self, handler: grpc.GenericRpcHandler, traffic: Traffic) -> None:
        self._handler = handler
        self._traffic = traffic

    def service(self, handler_call_details: Any) -> Any:
        """Answer the handler of a method, None for one that is not of this service."""
        handler = self._handler.service(handler_call_details)
        return _limited(handler, self._traffic) if handler else None


def _limited(handler: Any, traffic: Traffic) -> Any:
    """Answer the same handler as one of streams both ways; on the wire there is no difference."""
    behavior = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )

    async def requests(context: Context, caller: str) -> AsyncIterator[Any]:
        patient = False
        while True:
            message, let_go = await traffic.receiver.read(context, caller, patient=patient)
            let_go()  # Messages of these services are small, and are not kept.
            if message is None:
                return
            yield handler.request_deserializer(message)
            patient = True

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
            yield await behavior(asked, context)

    def serialized(message: Any) -> Any:
        # Some behaviors write to the context, past us.
        return message if isinstance(message, bytes) else handler.response_serializer(message)

    async def call(_: Any, context: Context) -> None:
        peer = context.peer()
        caller = caller_of(peer)
        try:
            traffic.foreign.enter(caller)
            traffic.connections.begin(peer)
            try:
                async for answer in answers(context, caller):
                    await traffic.sender.send(context, caller, (serialized(answer),))
            finally:
                traffic.connections.end(peer)
                traffic.foreign.leave(caller)
        except WasmkilnError as failure:
            if not context.done():
                await abort(context, failure)
        except aio.InternalError:  # The connection has gone.
            raise asyncio.CancelledError from None

    return grpc.stream_stream_rpc_method_handler(call, response_serializer=serialized)
