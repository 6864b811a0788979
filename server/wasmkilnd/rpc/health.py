"""Health, reflection and channelz: what tells whether the daemon serves, and what.

They pass the same limits as all other calls, but for a gate of their own, so that a probe is
answered when every call is taken. grpcio has servicers for them, of which these keep what works:
its health servicer forgets all watchers of a service when one of them leaves; its channelz fails at
fields that are newer than it; its reflection lacks v1, whose messages have the fields of
v1alpha's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, text_format
from google.protobuf.message_factory import GetMessageClass
from grpc._cython import cygrpc
from grpc_channelz.v1 import channelz_pb2  # noqa: F401 - reflection shows it
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from wasmkilnd.errors import invalid_request, quoted
from wasmkilnd.rpc.calls import Entry, Rpc, unary
from wasmkilnd.rpc.messages import SMALL_BYTES, reader
from wasmkilnd.rpc.traffic import Call, Traffic

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
PROBES = (HEALTH, "grpc.channelz.v1.Channelz", *REFLECTION)

Parse = Callable[[bytes], Any]

# Each is serialized to JSON and parsed again: 1,000 hold the event loop for some 7 ms.
_MAX_SOCKETS = 500
# Of one call. A person at a terminal needs a few dozen.
_MAX_QUESTIONS = 1000
_KEPT_ANSWERS = 256


@cache
def contract() -> Any:  # protobuf's type stubs lack half of a pool's methods.
    """Return protobuf's pool, which has the descriptors of every service that the daemon serves."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(REFLECTION[0])
    except KeyError:
        v1alpha, v1 = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(v1alpha)
        pool.Add(text_format.Parse(str(v1alpha).replace("v1alpha", "v1"), v1))
    return pool


class Health:
    """The health of the daemon, the same for each service. For one event loop."""

    def __init__(self, services: Iterable[str]) -> None:
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
        return self._response(request.service)

    async def watch(self, traffic: Traffic, parse: Parse, call: Call) -> None:
        """Send the health of a service now, and at each change."""
        request = parse(await traffic.read(call, SMALL_BYTES) or b"")
        call.release_request()
        sent = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response != sent:
                await traffic.write(call, response.SerializeToString())
                sent = response
            await changed.wait()

    def _response(self, service: str) -> Any:
        status = "SERVING" if self._serving else "NOT_SERVING"
        known = service in self._names
        return health_pb2.HealthCheckResponse(status=status if known else "SERVICE_UNKNOWN")


class Reflection:
    """Answers questions about the contract, so that grpcurl needs no proto file."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = reflection.ReflectionServicer(services, _Symbols())
        self._answer = lru_cache(maxsize=_KEPT_ANSWERS)(self._build)

    async def talk(self, traffic: Traffic, parse: Parse, call: Call) -> None:
        """Answer one question after the other."""
        for _ in range(_MAX_QUESTIONS):
            message = await traffic.read(call, SMALL_BYTES)
            call.release_request()
            if message is None:
                return
            await traffic.write(call, self._answer(parse, message))
        raise invalid_request(
            f"a call may have {_MAX_QUESTIONS:,} requests at most: begin another call", ""
        )

    def _build(self, parse: Parse, message: bytes) -> bytes:
        [found] = self._servicer.ServerReflectionInfo(iter([parse(message)]), None)
        answer: bytes = found.SerializeToString()
        return answer


class _Symbols:
    """The contract's pool, as grpcio's servicer uses one; it finds methods and values too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(contract(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        """Return the file of anything that has a name. Raises KeyError."""
        # protobuf's own looks for no methods, which `grpcurl describe` asks for; and it knows the
        # values of an enum beside the enum alone, where grpcurl looks for them inside.
        try:
            return contract().FindFileContainingSymbol(symbol)
        except KeyError:
            return contract().FindFileContainingSymbol(symbol.rpartition(".")[0])


def add_probes(server: Any, services: Sequence[str], health: Health, entry: Entry) -> None:
    """Serve health, reflection and channelz beside ``services``."""
    reflected = Reflection((*services, *PROBES))
    lasting: Mapping[str, tuple[Any, Callable[..., Awaitable[None]]]] = {
        "Watch": (health_pb2.HealthCheckRequest, health.watch),
        "ServerReflectionInfo": (reflection_pb2.ServerReflectionRequest, reflected.talk),
    }
    for service in PROBES:
        handlers = {}
        for method in contract().FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            if method.name in lasting:
                asked, act = lasting[method.name]
                answer = partial(act, entry.traffic, reader(path, asked.FromString))
                rpc = Rpc(path, entry, answer, entry.traffic.watches)
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(rpc.handle)
            elif service != HEALTH or method.name == "Check":  # A newer package has List, too.
                parse = GetMessageClass(method.input_type).FromString
                behavior = health.check if method.name == "Check" else partial(_ask_core, method)
                handlers[method.name] = unary(path, parse, behavior, entry, probe=True)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


async def _ask_core(method: Any, request: Any, call: Call) -> Any:
    """Answer a question of channelz with what gRPC's core says in JSON."""
    ids = [getattr(request, each.name) for each in method.input_type.fields if "_id" in each.name]
    if method.name == "GetServerSockets":
        ids.append(min(max(request.max_results, 0) or _MAX_SOCKETS, _MAX_SOCKETS))
    try:
        found = getattr(cygrpc, f"channelz_{in_words(method.name)}")(*ids)
    except ValueError as absent:
        await call.context.abort(grpc.StatusCode.NOT_FOUND, str(absent))
    answer = GetMessageClass(method.output_type)()
    return json_format.Parse(found, answer, ignore_unknown_fields=True)


def in_words(name: str) -> str:
    """Return a method's name as Python writes it."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
