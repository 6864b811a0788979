"""Health, reflection and channelz: what tells whether the daemon serves, and what.

They pass the same limits as all other calls, but for a gate of their own, so that a probe is
answered when every call is taken. grpcio has servicers for them, of which these keep what works:
its health servicer forgets all watchers of a service when one of them leaves, and has no List; its
channelz fails at fields that are newer than it; its reflection lacks v1, whose messages have the
fields of v1alpha's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from wasmkilnd.errors import invalid_request, quoted
from wasmkilnd.rpc.calls import Entry, handler, served
from wasmkilnd.rpc.contract import contract, message_class
from wasmkilnd.rpc.messages import not_a_message
from wasmkilnd.rpc.traffic import FREE_FOR_CHECKS, Call

HEALTH = "grpc.health.v1.Health"
CHANNELZ = "grpc.channelz.v1.Channelz"
REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
PROBES = (HEALTH, CHANNELZ, *REFLECTION)

_ListResponse = message_class("grpc.health.v1.HealthListResponse")

# Each is serialized to JSON and parsed again: 1,000 hold the event loop for some 7 ms.
_MAX_SOCKETS = 500
_ASKED_OF_CORE: Mapping[str, Callable[[Any], str]] = {
    "GetTopChannels": lambda asked: cygrpc.channelz_get_top_channels(asked.start_channel_id),
    "GetServers": lambda asked: cygrpc.channelz_get_servers(asked.start_server_id),
    "GetServer": lambda asked: cygrpc.channelz_get_server(asked.server_id),
    "GetServerSockets": lambda asked: cygrpc.channelz_get_server_sockets(
        asked.server_id,
        asked.start_socket_id,
        min(asked.max_results if asked.max_results > 0 else _MAX_SOCKETS, _MAX_SOCKETS),
    ),
    "GetChannel": lambda asked: cygrpc.channelz_get_channel(asked.channel_id),
    "GetSubchannel": lambda asked: cygrpc.channelz_get_subchannel(asked.subchannel_id),
    "GetSocket": lambda asked: cygrpc.channelz_get_socket(asked.socket_id),
}

# Of one call. A person at a terminal needs a few dozen.
_MAX_QUESTIONS = 1000
_KEPT_ANSWERS = 256


class Health:
    """The health of the daemon, the same for each service. For one event loop."""

    def __init__(self, services: Sequence[str]) -> None:
        self._names = frozenset(("", *services))
        self._serving = False
        # Set at the next change, and then replaced. A watcher waits for the event that was current
        # when it read the status, so that it misses no change.
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Set the health, and tell watchers."""
        if serving != self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    async def check(self, request: Any, call: Call) -> Any:
        """Return the health of a service."""
        if request.service not in self._names:
            await call.context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service {quoted(request.service)}"
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def list(self, request: Any, call: Call) -> Any:
        """Return the health of every service that ``check`` knows."""
        response = _ListResponse()
        for name in sorted(self._names):
            response.statuses[name].status = self._status(name)
        return response

    async def watch(self, entry: Entry, most_bytes: int, call: Call) -> None:
        """Send the health of a service now, and at each change."""
        request = _parsed(
            health_pb2.HealthCheckRequest, await entry.traffic.read(call, most_bytes) or b""
        )
        call.release_request()
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                message = health_pb2.HealthCheckResponse(status=status)
                await entry.traffic.write(call, message.SerializeToString())
                sent = status
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._serving:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING


class Reflection:
    """Answers questions about the contract, so that grpcurl needs no proto file."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = reflection.aio.ReflectionServicer(services, _Symbols())
        self._kept: dict[bytes, bytes] = {}

    async def talk(self, entry: Entry, most_bytes: int, call: Call) -> None:
        """Answer one question after the other."""
        for _ in range(_MAX_QUESTIONS):
            message = await entry.traffic.read(call, most_bytes)
            call.release_request()
            if message is None:
                return
            await entry.traffic.write(call, await self._answer(message))
        raise invalid_request(
            f"a call may have {_MAX_QUESTIONS:,} requests at most: begin another call", ""
        )

    async def _answer(self, message: bytes) -> bytes:
        """Return the answer, which is built once for each question."""
        if message not in self._kept:
            asked = _one(_parsed(reflection_pb2.ServerReflectionRequest, message))
            [found] = [each async for each in self._servicer.ServerReflectionInfo(asked, None)]
            if len(self._kept) >= _KEPT_ANSWERS:
                self._kept.clear()
            self._kept[message] = found.SerializeToString()
        return self._kept[message]


class _Symbols:
    """The contract's pool, as grpcio's servicer uses one; it finds methods too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(contract(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        """Return the file of anything that has a name. Raises KeyError."""
        pool = contract()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, name = symbol.rpartition(".")
        # protobuf's own looks for no methods, which `grpcurl describe` asks for; and it knows the
        # values of an enum beside the enum alone, where grpcurl looks for them inside.
        try:
            return pool.FindMethodByName(symbol).containing_service.file
        except KeyError:
            return pool.FindEnumTypeByName(parent).values_by_name[name].type.file


def add_probes(server: Any, services: Sequence[str], entry: Entry) -> Health:
    """Serve health, reflection and channelz beside ``services``; return the health."""
    health = Health(services)
    reflected = Reflection((*services, *PROBES))
    unary = {"Check": health.check, "List": health.list}
    lasting = {"Watch": health.watch, "ServerReflectionInfo": reflected.talk}
    for service in PROBES:
        handlers = {}
        for method in contract().FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            if method.name in lasting:
                most_bytes = entry.traffic.most_bytes(path)
                answer = partial(lasting[method.name], entry, most_bytes)
                serve = served(path, answer, entry, entry.traffic.probes, spare=FREE_FOR_CHECKS)
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(serve)
                continue
            asked = message_class(method.input_type.full_name).FromString
            behavior = unary.get(method.name) or partial(
                _ask_core, _ASKED_OF_CORE[method.name], message_class(method.output_type.full_name)
            )
            serve = handler(path, asked, behavior, entry, probe=True)
            handlers[method.name] = grpc.stream_unary_rpc_method_handler(serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    return health


async def _ask_core(ask: Callable[[Any], str], answer: Any, request: Any, call: Call) -> Any:
    """Answer a question of channelz with what gRPC's core says in JSON."""
    try:
        found = ask(request)
    except ValueError as absent:
        await call.context.abort(grpc.StatusCode.NOT_FOUND, str(absent))
    return json_format.Parse(found, answer(), ignore_unknown_fields=True)


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise not_a_message() from None


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request
