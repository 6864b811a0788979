"""Finds connections, and ends them when grpc.aio has no gentler way, such as to cancel a call."""

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
# Of struct tcp_info, as far as Linux 4.1 has it; what comes later stands behind.
_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128
_TCP_INFO_BYTES = _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size


def close(peers: Collection[Address], ports: frozenset[int]) -> int:
    """Shut the connections from ``peers`` down; return how many there were.

    Only connections to one of this daemon's own ``ports`` are meant. gRPC finds them
    closed, and lets go of all that it held for them. Unix sockets have no names to be
    found by. Looks at every open descriptor: call it in a thread.
    """
    closed = 0
    for sock in _sockets():
        with sock, contextlib.suppress(OSError):
            if sock.getsockname()[1] in ports and address(sock.getpeername()) in peers:
                sock.shutdown(socket.SHUT_RDWR)
                closed += 1
    return closed


def opened(ports: frozenset[int], more_than: int) -> dict[Address, int]:
    """Return who is connected, and to which of ``ports``.

    Nobody at all, and sooner, unless more descriptors are open than ``more_than``.
    Looking at 1,000 takes some 10 ms: call it in a thread.
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
    """Return how many bytes the kernel took in from each peer that is connected to ``ports``.

    Looking at 1,000 takes some 15 ms: call it in a thread.
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
            # A copy: the number may become another's while we look at it.
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
    """Return where a peer is, given gRPC's name of it; None for a Unix socket."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return address((host.strip("[]"), int(port)))


def address(name: tuple[object, ...]) -> Address:
    """Return where a peer is, given a socket's name of it."""
    return address_of(str(name[0])), int(str(name[1]))


def hosts_of(peers: Iterable[Address], ports: frozenset[int]) -> dict[Address, str]:
    """Return the host of each peer: its address, of IPv6 a network, on loopback a local user.

    Every caller on loopback has the same address, but the kernel tells whose socket it is.
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
    """Return which user has each of this machine's sockets that are connected to ``ports``."""
    users: dict[Address, str] = {}
    for table in _TABLES:
        with contextlib.suppress(OSError):  # A container may not show it.
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[2].rpartition(":")[2], 16) in ports:
                    users[_table_address(fields[1])] = fields[7]
    return users


def _table_address(text: str) -> Address:
    """Return what the kernel writes as hexadecimal words in the machine's order, and a port."""
    host, _, port = text.partition(":")
    words = (host[at : at + 8] for at in range(0, len(host), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return address((str(ipaddress.ip_address(packed)), int(port, 16)))
