"""The gRPC server: its options, its addresses, and the services that it serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc import aio
from grpc_channelz.v1 import channelz_pb2_grpc
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

from wasmkilnd.account import Account, unlimited
from wasmkilnd.model import PLAINTEXT, Artifact, Identity, TrafficLimits
from wasmkilnd.network import is_listening
from wasmkilnd.ports import Auditor, Guard
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.calls import Behavior, CallGate, CallRecorder, Traffic, abort, handler
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.call import CallsUnderWay
from wasmkilnd.rpc.connections.flood_guard import FloodGuard
from wasmkilnd.rpc.connections.reserve import ConnectionReserve
from wasmkilnd.rpc.flow.receive import Receiver
from wasmkilnd.rpc.flow.send import Sender
from wasmkilnd.rpc.grpcio_services import LimitedServer
from wasmkilnd.rpc.services.admin import AdminServicer
from wasmkilnd.rpc.services.channelz import Channelz
from wasmkilnd.rpc.services.health import Health
from wasmkilnd.rpc.services.module import ModuleServicer
from wasmkilnd.rpc.services.reflection import add_reflection
from wasmkilnd.rpc.wire.messages import CompileCall

log = structlog.get_logger("wasmkilnd.rpc")

MODULE_SERVICE = "wasmkiln.v1.ModuleService"
ADMIN_SERVICE = "wasmkiln.v1.AdminService"
SERVICES = (MODULE_SERVICE, ADMIN_SERVICE, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz")

METHODS = (
    *(
        f"/{MODULE_SERVICE}/{m.name}"
        for m in module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"].methods
    ),
    *(
        f"/{ADMIN_SERVICE}/{m.name}"
        for m in admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].methods
    ),
)

# A module above its limit should get the daemon's own error, which explains it. A message above
# this size gets gRPC's.
_LEAST_MESSAGE_BYTES = 16 * 1024 * 1024
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_METADATA_BYTES = 16 * 1024
_LAST_ANSWERS_S = 0.5

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # A second daemon on one port is a mistake: fail.
    ("grpc.max_send_message_length", -1),
    # The hard limit too: between the two limits gRPC refuses at random.
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    # Uncompressed messages only: gRPC 1.76 checks the size of a compressed one after it has
    # unpacked all of it, and 600 KB become 600 MB.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # gRPC ends a connection (GOAWAY, "too_many_pings") that pings more often than this without
    # calls, at the third time.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # The calls of a peer that vanished end.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A connection without a handshake, or idle for long, is closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
)


class CannotListen(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot listen on an address; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What gRPC's core lets in. A reload does not change it."""

    module_bytes: int
    """The largest module; messages may be a little larger."""
    connections: int
    """Per address."""
    streams: int
    """Calls per connection."""


class RpcServer:
    """One server on one or several addresses."""

    def __init__(
        self,
        module_servicer: ModuleServicer,
        admin_servicer: AdminServicer,
        recorder: CallRecorder,
        transport: TransportLimits,
        limits: Reloadable[TrafficLimits],
        in_memory: Callable[[Artifact], bool],
        guard: Guard,
        auditor: Auditor,
        account_of: Callable[[Identity], Account] = unlimited,
    ) -> None:
        """``in_memory`` tells whether the memory tier holds an artifact."""
        message = max(_LEAST_MESSAGE_BYTES, transport.module_bytes + _MESSAGE_OVERHEAD_BYTES)
        self.largest_module_bytes = message - _MESSAGE_OVERHEAD_BYTES
        """The largest module that gRPC lets in, whatever a reload sets the limit to."""
        self._transport = transport
        self._ports: set[int] = set()
        self._reserve: asyncio.Task[None] | None = None
        self._flood_guard: FloodGuard | None = None
        self._message_bytes = message
        self._limits = limits

        self._gate = CallGate(limits)
        self._traffic = Traffic(
            self._gate,
            CallGate(limits),
            CallsUnderWay(remembered=4 * transport.connections),
            Receiver(limits, message),
            Sender(limits, abort, self._close_connection, in_memory),
            recorder,
            guard,
            auditor,
            PLAINTEXT,
            account_of,
        )
        self._ungated = replace(self._traffic, gate=CallGate(limits), account_of=unlimited)
        self._server = aio.server(
            options=[
                *_OPTIONS,
                ("grpc.max_receive_message_length", message),
                ("grpc.max_concurrent_streams", transport.streams),
                ("grpc.max_allowed_incoming_connections", transport.connections),
            ]
        )
        limited = LimitedServer(self._server, self._traffic)
        self._add(
            MODULE_SERVICE,
            module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"],
            {
                "Load": module_servicer.load,
                "Compile": module_servicer.compile,
                "Stats": module_servicer.stats,
                "GetCapabilities": module_servicer.get_capabilities,
                "FindMissing": module_servicer.find_missing,
            },
        )
        self._add(
            ADMIN_SERVICE,
            admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
            {
                "Evict": admin_servicer.evict,
                "ListQuarantine": admin_servicer.list_quarantine,
                "ReleaseQuarantine": admin_servicer.release_quarantine,
                "Drain": admin_servicer.drain,
            },
        )
        self.health = Health(limited, (MODULE_SERVICE, ADMIN_SERVICE))
        channelz_pb2_grpc.add_ChannelzServicer_to_server(Channelz(), limited)
        add_reflection(limited, SERVICES)

    def _add(self, service: str, descriptor: Any, behaviors: dict[str, Behavior]) -> None:
        def served(method: Any) -> Any:
            # What the handler of Compile returns is its last message.
            is_compile = method.name == "Compile"
            register = (
                grpc.stream_unary_rpc_method_handler
                if is_compile
                else (grpc.stream_stream_rpc_method_handler)
            )
            parse = CompileCall if is_compile else method.input_type._concrete_class.FromString
            # The daemon accepts Drain while it drains: an operator may shorten the grace, or try
            # again if the first answer was lost.
            traffic = self._ungated if method.name == "Drain" else self._traffic
            return register(
                handler(f"/{service}/{method.name}", parse, behaviors[method.name], traffic)
            )

        handlers = {method.name: served(method) for method in descriptor.methods}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen and serve; return the addresses with the real ports. Raises CannotListen."""
        bound = [self._bind(address) for address in addresses]
        await self._server.start()
        closed = self._traffic.recorder.connections_closed
        reserve = ConnectionReserve(self._transport.connections, self._traffic.under_way, closed)
        self._reserve = asyncio.create_task(reserve.run(frozenset(self._ports)))
        self._flood_guard = FloodGuard(
            self._ports,
            lambda: self._limits.current.calls,
            self._message_bytes,
            closed,
        )
        self._flood_guard.start()
        return bound

    def _bind(self, address: str) -> str:
        path = _unix_path(address)
        if path:
            if not Path(path).parent.is_dir():
                raise CannotListen(
                    f"cannot listen on {address}: {Path(path).parent} is not a directory; create it"
                )
            _refuse_used_socket(address, Path(path))
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise CannotListen(
                f"cannot listen on {address}: it is in use, or not an address of this machine;"
                " choose another with --listen or WASMKILN_LISTEN"
            )
        if path:
            with contextlib.suppress(OSError):
                os.chmod(path, 0o600)  # noqa: PTH101
            return address
        self._ports.add(port)
        return f"{address.rpartition(':')[0]}:{port}"

    async def _close_connection(self, peer: str) -> None:
        if address := sockets.parse(peer):
            closed = await asyncio.to_thread(sockets.close, (address,), frozenset(self._ports))
            self._traffic.recorder.connections_closed("not_read", closed)

    @property
    def traffic(self) -> Traffic:
        """The gates and budgets, for the gauges of what calls hold now."""
        return self._traffic

    @property
    def running_calls(self) -> int:
        """How many calls run now."""
        return self._gate.running

    def refuse_calls(self) -> None:
        """Refuse new calls with SERVER_DRAINING, and tell watchers of the health."""
        self.health.set(False)
        self._gate.close()

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._gate.idle()

    async def stop(self) -> None:
        """Close every connection, and end the calls that still run half a second later.

        The delay is for answers that are on their way, such as that of a compilation that the
        daemon has just given up.
        """
        if self._flood_guard:
            await asyncio.to_thread(self._flood_guard.stop)
        if self._reserve:
            self._reserve.cancel()
            await asyncio.gather(self._reserve, return_exceptions=True)
        await self._server.stop(_LAST_ANSWERS_S)


def _unix_path(address: str) -> str:
    if not address.startswith("unix:"):
        return ""
    return address.removeprefix("unix:").removeprefix("//")


def _refuse_used_socket(address: str, path: Path) -> None:
    """Raise CannotListen if ``path`` is in use: gRPC would take a socket over from its process."""
    if path.exists() and not path.is_socket():
        raise CannotListen(f"cannot listen on {address}: the path is a file that is not a socket")
    if is_listening(path):
        raise CannotListen(
            f"cannot listen on {address}: another process serves there;"
            " choose another with --listen or WASMKILN_LISTEN"
        )
