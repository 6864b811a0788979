"""Addresses: which count as one host, and who listens on a Unix socket."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


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
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            # It is no socket, or a process that was killed has left it behind.
            return False
        except OSError:
            return True  # The process belongs to another user, or is too busy to accept.
    return True
