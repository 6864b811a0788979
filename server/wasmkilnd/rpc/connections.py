"""Ends a connection when there is no gentler way: grpc.aio cannot cancel a single call."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from urllib.parse import unquote

_Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def close(peer: str, ports: frozenset[int]) -> bool:
    """Shut the connection from ``peer`` down, given gRPC's name of it; answer if there was one.

    Only a connection to one of this daemon's own ``ports`` is meant. gRPC finds it
    closed, and lets go of all that it held for it. Unix sockets have no names to be
    found by. Looks at every open descriptor: call it in a thread.
    """
    wanted = _parse(peer)
    if wanted is None:
        return False
    for sock in _sockets():
        with sock, contextlib.suppress(OSError):
            if sock.getsockname()[1] in ports and _address(sock.getpeername()) == wanted:
                sock.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are enough
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


def _parse(peer: str) -> _Address | None:
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return _address((host.strip("[]"), int(port)))


def _address(name: tuple[object, ...]) -> _Address:
    address = ipaddress.ip_address(str(name[0]))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address, int(str(name[1]))
