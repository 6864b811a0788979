"""Whose connections count together when there are too few for all."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from wasmkilnd.network import host_of
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.sockets import Address

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


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
                    users[_address(fields[1])] = fields[7]
    return users


def _address(text: str) -> Address:
    """Return what the kernel writes as hexadecimal words in the machine's order, and a port."""
    host, _, port = text.partition(":")
    words = (host[at : at + 8] for at in range(0, len(host), 8))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return sockets.address((str(ipaddress.ip_address(packed)), int(port, 16)))
