"""The daemon's open connections, as the kernel knows them: list, count, group and close them.

grpc.aio offers none of this. The functions look at every descriptor of the process: call them
in a thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from wasmkilnd.network import Address as IpAddress
from wasmkilnd.network import address_of, host_of

Address = tuple[IpAddress, int]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# Offsets in Linux's struct tcp_info since 4.1; later kernels only append to it.
_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128
_TCP_INFO_BYTES = _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size


def close(peers: Collection[Address], ports: frozenset[int]) -> int:
    """Shut the connections from ``peers`` down; return how many there were.

    Only connections to one of the daemon's own ``ports`` are closed. gRPC then finds them
    closed, and frees what it held for them. Unix sockets cannot be found: their peers have
    no names.
    """
    closed = 0
    for sock in _sockets():
        with sock, contextlib.suppress(OSError):
            if sock.getsockname()[1] in ports and address(sock.getpeername()) in peers:
                sock.shutdown(socket.SHUT_RDWR)
                closed += 1
    return closed


def connected(ports: frozenset[int], more_than: int) -> dict[Address, int]:
    """Return the peers that are connected, each with the one of ``ports`` it is connected to.

    Return nothing, and faster, unless the process has more than ``more_than`` descriptors
    open. 1,000 connections take some 10 ms.
    """
    peers: dict[Address, int] = {}
    if len(_descriptors()) <= more_than:
        return peers
    for sock in _sockets():
        with sock, contextlib.suppress(OSError):
            port = sock.getsockname()[1]
            if port in ports:
                peers[address(sock.getpeername())] = port
    return peers


def received(ports: frozenset[int]) -> dict[Address, int]:
    """Return how many bytes the kernel has received from each peer connected to ``ports``.

    1,000 connections take some 15 ms.
    """
    peers: dict[Address, int] = {}
    for sock in _sockets():
        with sock, contextlib.suppress(OSError):
            if sock.getsockname()[1] in ports:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                peer = address(sock.getpeername())
                (peers[peer],) = _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)
    return peers


def _descriptors() -> list[str]:
    try:
        return os.listdir("/proc/self/fd")  # noqa: PTH208 - names are enough
    except OSError:  # No descriptor is left to look with.
        return []


def _sockets() -> Iterator[socket.socket]:
    for name in _descriptors():
        with contextlib.suppress(OSError):  # It was closed meanwhile, or is no socket.
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                continue
            # A copy, for gRPC may close the descriptor and the kernel reuse its number meanwhile.
            copy = os.dup(int(name))
            try:
                sock = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                raise
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                yield sock
            else:
                sock.close()


def parse(peer: str) -> Address | None:
    """Return the address of a peer by gRPC's name for it; None for a Unix socket."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return address((host.strip("[]"), int(port)))


def address(name: tuple[object, ...]) -> Address:
    """Return the address of a peer by its socket's name, as ``getpeername`` returns it."""
    return address_of(str(name[0])), int(str(name[1]))


def hosts_of(peers: Iterable[Address], ports: frozenset[int]) -> dict[Address, str]:
    """Return the host of each peer: an IPv4 address, an IPv6 /64 network, or a local user.

    On loopback all callers have the same address, but the kernel tells which user owns the
    other end's socket.
    """
    peers = tuple(peers)
    users = _users(ports) if any(peer[0].is_loopback for peer in peers) else {}
    return {peer: _host(peer, users) for peer in peers}


def _host(peer: Address, users: Mapping[Address, str]) -> str:
    address = peer[0]
    if address.is_loopback:
        return f"user {users[peer]} of this machine" if peer in users else "this machine"
    return host_of(address)


def _users(ports: frozenset[int]) -> dict[Address, str]:
    """Return the user that owns each of this machine's sockets connected to ``ports``."""
    users: dict[Address, str] = {}
    for table in _TABLES:
        with contextlib.suppress(OSError):  # A container may hide it.
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[2].rpartition(":")[2], 16) in ports:
                    users[_table_address(fields[1])] = fields[7]
    return users


def _table_address(text: str) -> Address:
    """Parse an address of the kernel's tables: hexadecimal words in host byte order, and a port."""
    host, _, port = text.partition(":")
    words = (host[at : at + 8] for at in range(0, len(host), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return address((str(ipaddress.ip_address(packed)), int(port, 16)))
