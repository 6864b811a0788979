"""Addresses: which count as one host, who listens there, and why the daemon cannot."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
IN_USE = "it is in use, or not an address of this machine"


class CannotListen(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot listen on an address; the message says which, why and what to do."""


def cannot_listen(address: object, setting: str, why: OSError | str) -> CannotListen:
    """Return the error for the address that a setting names."""
    if isinstance(why, OSError):
        code = why.errno or 0  # Below 0 of a name server.
        why = os.strerror(code) if code > 0 else str(why.strerror)
    name = setting.replace("_", "-")
    return CannotListen(
        f"cannot listen on {address}: {why}; choose another with --{name} or"
        f" WASMKILN_{setting.upper()}"
    )


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


def open_socket(address: str, path: Path, group: int | None) -> None:
    """Let ``group`` connect to a Unix socket that is bound, if any. Raises CannotListen."""
    try:
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(0o600 if group is None else 0o660)
    except OSError as failure:
        raise CannotListen(
            f"cannot set mode and group of {address} (socket_group): {failure.strerror}"
        ) from None


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
