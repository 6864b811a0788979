"""The gRPC servers: what they serve, on which addresses, with which of grpc's own limits.

There is one server for each address. All share one ``Traffic``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from wasmkilnd.model import PLAINTEXT, Entrance
from wasmkilnd.network import IN_USE, cannot_listen, is_listening, open_socket
from wasmkilnd.quota import unlimited
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.calls import Entry, unary
from wasmkilnd.rpc.health import PROBES, Health, add_probes, contract, in_words
from wasmkilnd.rpc.messages import CompileCall
from wasmkilnd.rpc.module_service import ModuleServicer

MODULE_SERVICE = "wasmkiln.v1.ModuleService"
ADMIN_SERVICE = "wasmkiln.v1.AdminService"
SERVICES = (MODULE_SERVICE, ADMIN_SERVICE, *PROBES)
METHODS = tuple(
    f"/{service}/{method.name}"
    for service in SERVICES
    for method in contract().FindServiceByName(service).methods
)

# The daemon accepts these while it drains, and they do not count among its calls. Operators look
# how the drain goes and end jobs that hold it up; they may shorten the grace, undo it, or try again
# if the first answer was lost.
_WHILE_DRAINING = ("Drain", "UndoDrain", "ListJobs", "EndJob", "Stats", "GetCapabilities")
# FindMissing parses its keys one by one.
_PARSERS: Mapping[str, Callable[[bytes], Any]] = {"Compile": CompileCall, "FindMissing": bytes}

_LAST_ANSWERS_S = 0.5
_LOOK_S = 0.02
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
    # A stream that nobody reads takes its first 64 KiB: gRPC would let fast callers send 8 MiB more
    # behind each request that waits.
    ("grpc.http2.bdp_probe", 0),
    # Every other one gets a GOAWAY in time, and is closed when the longest call must have ended.
    ("grpc.max_connection_age_ms", _HOUR_MS),
    ("grpc.max_connection_age_grace_ms", _HOUR_MS),
)


# A caller hung up while its answer was sent: under a flood of resets, thousands do. What the call
# came to is in its own line.
logging.getLogger("grpc._cython.cygrpc").addFilter(
    lambda line: not line.getMessage().startswith("ExecuteBatchError")
)


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that is listened on, and what is served there."""

    address: str
    # What names it: ``listen``, ``token_listen`` or ``operator_listen``.
    setting: str
    # Whether AdminService is served there.
    admin: bool
    entrance: Entrance = PLAINTEXT
    # Makes gRPC's ServerCredentials; None for plaintext and Unix sockets.
    credentials: Callable[[], Any] | None = None


class RpcServer:
    """Serves gRPC on every address that the settings name.

    Each has a server, since gRPC does not tell through which of its addresses a call came.
    """

    def __init__(
        self,
        module_servicer: ModuleServicer,
        admin_servicer: AdminServicer,
        entry: Entry,
        *,
        connections: int,
        streams: int,
    ) -> None:
        """Let so many ``connections`` to each address in, and calls (``streams``) on each."""
        self._entry = entry
        self._options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", entry.traffic.message_bytes),
            ("grpc.max_concurrent_streams", streams),
            ("grpc.max_allowed_incoming_connections", connections),
        )
        self._servicers = {MODULE_SERVICE: module_servicer, ADMIN_SERVICE: admin_servicer}
        self._servers: list[Any] = []
        self._health = Health(self._servicers)

    async def start(self, listeners: Sequence[Listener], group: int | None) -> list[str]:
        """Listen and serve; return the addresses, with the real ports. Raises CannotListen."""
        bound = []
        for at in listeners:
            server = aio.server(options=self._options)
            entry = replace(self._entry, entrance=at.entrance)
            services = (MODULE_SERVICE, ADMIN_SERVICE) if at.admin else (MODULE_SERVICE,)
            for service in services:
                self._add(server, service, entry)
            probes = replace(entry, quota_of=unlimited, tracing=None)
            add_probes(server, services, self._health, probes)
            self._servers.append(server)
            bound.append(_bind(server, at, group))
        for server in self._servers:
            await server.start()
        return bound

    def set_health(self, serving: bool) -> None:
        """Set the health that every server tells, and tell watchers."""
        self._health.set(serving)

    @property
    def running_calls(self) -> int:
        """How many calls run now."""
        return self._entry.traffic.calls.total

    def refuse_calls(self) -> None:
        """Refuse new calls with SERVER_DRAINING, and tell watchers of the health."""
        self.set_health(False)
        self._entry.traffic.calls.closed = True

    def accept_calls(self, serving: bool) -> None:
        """Accept new calls again, and tell watchers of the health."""
        self.set_health(serving)
        self._entry.traffic.calls.closed = False

    async def idle(self) -> None:
        """Wait until no call runs, after ``refuse_calls``."""
        while self.running_calls:  # noqa: ASYNC110 - once in a daemon's life
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """Close every connection, and end the calls that still run half a second later.

        The delay is for answers that are on their way, such as that of a compilation that the
        daemon has just given up.
        """
        await asyncio.gather(*(server.stop(_LAST_ANSWERS_S) for server in self._servers))

    def _add(self, server: Any, service: str, entry: Entry) -> None:
        handlers = {}
        for method in contract().FindServiceByName(service).methods:
            name, asked = method.name, GetMessageClass(method.input_type)
            behavior = getattr(self._servicers[service], in_words(name))
            handlers[name] = unary(
                f"/{service}/{name}",
                _PARSERS.get(name, asked.FromString),
                behavior,
                replace(entry, quota_of=unlimited) if name == "Drain" else entry,
                probe=name in _WHILE_DRAINING,
                streams=method.client_streaming,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _bind(server: Any, at: Listener, group: int | None) -> str:
    """Bind an address; return it with the real port. Raises CannotListen."""
    path: Path | None = None
    why = IN_USE
    # Nobody else can connect to a Unix socket before the file has its mode.
    before = os.umask(0o177)
    try:
        if at.address.startswith("unix:"):
            path = Path(at.address.removeprefix("unix:").removeprefix("//"))
            if is_listening(path):  # gRPC would take the socket over.
                why = "another process serves there"
                raise RuntimeError
        if at.credentials:
            port = server.add_secure_port(at.address, at.credentials())
        else:
            port = server.add_insecure_port(at.address)
    except RuntimeError:
        raise cannot_listen(at.address, at.setting, why) from None
    finally:
        os.umask(before)
    if path:
        open_socket(at.address, path, group)
        return at.address
    return f"{at.address.rpartition(':')[0]}:{port}"
