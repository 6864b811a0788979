"""The gRPC servers: what they serve, on which addresses, with which of grpc's own limits.

There is one server for each group of addresses that are served in the same way. All share one
``Traffic``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

from wasmkilnd.model import PLAINTEXT, Artifact, Entrance, Identity, TrafficLimits
from wasmkilnd.network import SocketAccess, is_listening
from wasmkilnd.ports import Auditor, Guard
from wasmkilnd.quota import Quota, unlimited
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.calls import Behavior, CallRecorder, Entry, handler
from wasmkilnd.rpc.contract import contract
from wasmkilnd.rpc.health import PROBES, Health, add_probes
from wasmkilnd.rpc.messages import CompileCall
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.traffic import Traffic
from wasmkilnd.telemetry.tracing import Tracing

MODULE_SERVICE = "wasmkiln.v1.ModuleService"
ADMIN_SERVICE = "wasmkiln.v1.AdminService"
SERVICES = (MODULE_SERVICE, ADMIN_SERVICE, *PROBES)
METHODS = tuple(
    f"/{service}/{method.name}"
    for service in SERVICES
    for method in contract().FindServiceByName(service).methods
)

_DESCRIBED: Mapping[str, Any] = {
    MODULE_SERVICE: module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"],
    ADMIN_SERVICE: admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
}

# The daemon accepts these while it drains, and they do not count among its calls. Operators look
# how the drain goes; they may shorten the grace, or try again if the first answer was lost.
_WHILE_DRAINING = ("Drain", "Stats", "GetCapabilities")
# FindMissing parses its keys one by one.
_PARSERS: Mapping[str, Callable[[bytes], Any]] = {"Compile": CompileCall, "FindMissing": bytes}

# A module above its limit should get the daemon's own error, which explains it. A message above
# this size gets gRPC's.
_LEAST_MESSAGE_BYTES = 16 * 1024 * 1024
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_LAST_ANSWERS_S = 0.5
_METADATA_BYTES = 16 * 1024
_HOUR_MS = 3_600_000

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
    # A connection without a handshake, that of TLS included, or idle for long, is closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", _HOUR_MS // 4),
    # Every other one gets a GOAWAY in time, and is closed when the longest call must have ended.
    ("grpc.max_connection_age_ms", _HOUR_MS),
    ("grpc.max_connection_age_grace_ms", _HOUR_MS),
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


@dataclass(frozen=True, slots=True)
class ListenGroup:
    """Addresses that are served in the same way."""

    setting: str
    """That names them: ``listen``, ``token_listen`` or ``operator_listen``."""
    entrance: Entrance
    addresses: Sequence[str]
    credentials: Callable[[], Any] | None = None
    """Makes gRPC's ServerCredentials for one address; None for plaintext and Unix sockets."""
    admin: bool = True
    """Whether AdminService is served there."""

    @property
    def advice(self) -> str:
        """What to do if one of them is in use."""
        flag = self.setting.replace("_", "-")
        return f"choose another with --{flag} or WASMKILN_{self.setting.upper()}"


class RpcServer:
    """Serves gRPC on every address that the settings name."""

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
        quota_of: Callable[[Identity], Quota] = unlimited,
        tracing: Tracing | None = None,
    ) -> None:
        """``in_memory`` tells whether the memory tier holds an artifact."""
        message_bytes = max(_LEAST_MESSAGE_BYTES, transport.module_bytes + _MESSAGE_OVERHEAD_BYTES)
        self.largest_module_bytes = message_bytes - _MESSAGE_OVERHEAD_BYTES
        """The largest module that gRPC lets in, whatever a reload sets the limit to."""
        self.traffic = Traffic(limits, message_bytes, in_memory)
        """The limits of calls, for the gauges of what these hold now."""
        self._entry = Entry(self.traffic, recorder, guard, auditor, PLAINTEXT, quota_of, tracing)
        self._options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_concurrent_streams", transport.streams),
            ("grpc.max_allowed_incoming_connections", transport.connections),
        )
        module, admin = module_servicer, admin_servicer
        self._behaviors: dict[str, dict[str, Behavior]] = {
            MODULE_SERVICE: {
                "Load": module.load,
                "Compile": module.compile,
                "Stats": module.stats,
                "GetCapabilities": module.get_capabilities,
                "FindMissing": module.find_missing,
            },
            ADMIN_SERVICE: {
                "Evict": admin.evict,
                "ListQuarantine": admin.list_quarantine,
                "ReleaseQuarantine": admin.release_quarantine,
                "Pin": admin.pin,
                "Unpin": admin.unpin,
                "ListPins": admin.list_pins,
                "Drain": admin.drain,
            },
        }
        self._servers: list[Any] = []
        self._healths: list[Health] = []

    async def start(
        self, groups: Sequence[ListenGroup], socket_access: SocketAccess
    ) -> list[list[str]]:
        """Listen and serve; return the addresses of each group, with the real ports.

        Raises CannotListen.
        """
        for group in groups:
            server = aio.server(options=self._options)
            entry = replace(self._entry, entrance=group.entrance)
            services = (MODULE_SERVICE, ADMIN_SERVICE) if group.admin else (MODULE_SERVICE,)
            for service in services:
                self._add(server, service, entry)
            probes = replace(entry, quota_of=unlimited, tracing=None)
            self._healths.append(add_probes(server, services, probes))
            self._servers.append(server)
        bound = [
            [_bind(server, group, address, socket_access) for address in group.addresses]
            for server, group in zip(self._servers, groups, strict=True)
        ]
        for server in self._servers:
            await server.start()
        return bound

    def set_health(self, serving: bool) -> None:
        """Set the health that every server tells, and tell watchers."""
        for health in self._healths:
            health.set(serving)

    @property
    def running_calls(self) -> int:
        """How many calls run now."""
        return self.traffic.calls.running

    def refuse_calls(self) -> None:
        """Refuse new calls with SERVER_DRAINING, and tell watchers of the health."""
        self.set_health(False)
        self.traffic.calls.close()

    async def idle(self) -> None:
        """Wait until no call runs, after ``refuse_calls``."""
        await self.traffic.calls.idle()

    async def stop(self) -> None:
        """Close every connection, and end the calls that still run half a second later.

        The delay is for answers that are on their way, such as that of a compilation that the
        daemon has just given up.
        """
        await asyncio.gather(*(server.stop(_LAST_ANSWERS_S) for server in self._servers))

    def _add(self, server: Any, service: str, entry: Entry) -> None:
        handlers = {}
        for name, behavior in self._behaviors[service].items():
            asked = _DESCRIBED[service].methods_by_name[name].input_type._concrete_class
            parse = _PARSERS.get(name, asked.FromString)
            passed = replace(entry, quota_of=unlimited) if name == "Drain" else entry
            handlers[name] = grpc.stream_unary_rpc_method_handler(
                handler(
                    f"/{service}/{name}", parse, behavior, passed, probe=name in _WHILE_DRAINING
                )
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def open_socket(address: str, path: Path, sockets: SocketAccess) -> None:
    """Set who can connect to a Unix socket that is bound. Raises CannotListen."""
    try:
        sockets.apply(path)
    except OSError as failure:
        raise CannotListen(
            f"cannot set mode and group of {address} (socket_mode, socket_group):"
            f" {failure.strerror}"
        ) from None


def _bind(server: Any, group: ListenGroup, address: str, sockets: SocketAccess) -> str:
    """Bind an address; return it with the real port. Raises CannotListen."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:").removeprefix("//"))
        _refuse_used_socket(address, path, group.advice)
        # Nobody else can connect before the file has its mode.
        before = os.umask(0o177)
        try:
            bound = _add_port(server, group, address)
        finally:
            os.umask(before)
        if bound:
            open_socket(address, path, sockets)
            return address
    elif port := _add_port(server, group, address):
        return f"{address.rpartition(':')[0]}:{port}"
    raise CannotListen(
        f"cannot listen on {address}: it is in use, or not an address of this machine;"
        f" {group.advice}"
    )


def _add_port(server: Any, group: ListenGroup, address: str) -> int:
    """Bind an address; return its port, 0 if that fails, and 1 for a Unix socket."""
    try:
        if group.credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, group.credentials()))
    except RuntimeError:
        return 0


def _refuse_used_socket(address: str, path: Path, advice: str) -> None:
    """Raise CannotListen if ``path`` is in use: gRPC would take a socket over from its process."""
    if not path.parent.is_dir():
        raise CannotListen(
            f"cannot listen on {address}: {path.parent} is not a directory; create it"
        )
    if path.exists() and not path.is_socket():
        raise CannotListen(f"cannot listen on {address}: the path is a file that is not a socket")
    if is_listening(path):
        raise CannotListen(f"cannot listen on {address}: another process serves there; {advice}")
