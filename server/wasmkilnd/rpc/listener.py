"""One gRPC server for a group of addresses: its options, and how it binds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio

from wasmkilnd.model import Entrance
from wasmkilnd.network import SocketAccess, is_listening

_METADATA_BYTES = 16 * 1024

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


class Listener:
    """A gRPC server on the addresses of a group."""

    def __init__(self, group: ListenGroup, limits: TransportLimits, message_bytes: int) -> None:
        self.group = group
        self.server = aio.server(
            options=[
                *_OPTIONS,
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_concurrent_streams", limits.streams),
                ("grpc.max_allowed_incoming_connections", limits.connections),
            ]
        )
        self.ports: set[int] = set()

    def bind(self, sockets: SocketAccess) -> list[str]:
        """Bind every address; return them with the real ports. Raises CannotListen."""
        return [self._bind(address, sockets) for address in self.group.addresses]

    def _bind(self, address: str, sockets: SocketAccess) -> str:
        path = _unix_path(address)
        if path:
            if not path.parent.is_dir():
                raise CannotListen(
                    f"cannot listen on {address}: {path.parent} is not a directory; create it"
                )
            _refuse_used_socket(address, path, self._advice)
            # Nobody else can connect before the file has its mode.
            before = os.umask(0o177)
            try:
                bound = self._add_port(address)
            finally:
                os.umask(before)
            if bound:
                open_socket(address, path, sockets)
                return address
        elif port := self._add_port(address):
            self.ports.add(port)
            return f"{address.rpartition(':')[0]}:{port}"
        raise CannotListen(
            f"cannot listen on {address}: it is in use, or not an address of this machine;"
            f" {self._advice}"
        )

    def _add_port(self, address: str) -> int:
        """Bind an address; return its port, 0 if that fails, and 1 for a Unix socket."""
        credentials = self.group.credentials
        try:
            if credentials is None:
                return int(self.server.add_insecure_port(address))
            return int(self.server.add_secure_port(address, credentials()))
        except RuntimeError:
            return 0

    @property
    def _advice(self) -> str:
        flag = self.group.setting.replace("_", "-")
        return f"choose another with --{flag} or WASMKILN_{self.group.setting.upper()}"


def open_socket(address: str, path: Path, sockets: SocketAccess) -> None:
    """Set who can connect to a Unix socket that is bound. Raises CannotListen."""
    try:
        sockets.apply(path)
    except OSError as failure:
        raise CannotListen(
            f"cannot set mode and group of {address} (socket_mode, socket_group):"
            f" {failure.strerror}"
        ) from None


def _unix_path(address: str) -> Path | None:
    if not address.startswith("unix:"):
        return None
    return Path(address.removeprefix("unix:").removeprefix("//"))


def _refuse_used_socket(address: str, path: Path, advice: str) -> None:
    """Raise CannotListen if ``path`` is in use: gRPC would take a socket over from its process."""
    if path.exists() and not path.is_socket():
        raise CannotListen(f"cannot listen on {address}: the path is a file that is not a socket")
    if is_listening(path):
        raise CannotListen(f"cannot listen on {address}: another process serves there; {advice}")
