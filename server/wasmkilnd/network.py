"""Addresses: which count as one host, who can reach a Unix socket, who listens on one."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who can connect to the Unix sockets of the daemon."""

    mode: int = 0o600
    group: int | None = None
    """The group's number; None to leave it as it is."""

    def apply(self, path: Path) -> None:
        """Give the socket at ``path`` its group, then its mode. Raises OSError."""
        if self.group is not None:
            os.chown(path, -1, self.group)
        path.chmod(self.mode)


def address_of(text: str) -> Address:
    """Parse an IP address; return an IPv4 one for IPv6-mapped IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def host_of(address: Address) -> str:
    """Return the host of an address: for IPv6 the /64 network, which one host commonly owns."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(address)


def is_listening(path: Path) -> bool:
    """Return whether a process listens on the Unix socket at ``path``. Takes up to a second."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False  # A process that was killed has left its socket behind.
        except OSError:
            return True  # The process belongs to another user, or is too busy to accept.
    return True
