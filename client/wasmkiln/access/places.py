"""What an address says about where the daemon is."""

from __future__ import annotations

import ipaddress
import re

from wasmkiln._routing import is_ring, members

_LOCAL = re.compile(r"(?:unix|unix-abstract|vsock):")
_SCHEME = re.compile(r"(?:dns|ipv4|ipv6|passthrough):(?:///)?(?://[^/]*/)?")
_UNIX = re.compile(r"unix(?:-abstract)?:")
# Schemes of gRPC that name no host and port.
_OTHERS = re.compile(r"(?:unix|unix-abstract|vsock|xds):")


def is_unix(address: str) -> bool:
    """Return whether an address is a Unix socket."""
    return _UNIX.match(address) is not None


def is_local(address: str) -> bool:
    """Return whether an address is on this machine, as far as it tells by itself."""
    if _LOCAL.match(address):
        return True
    return all(_is_loopback(place) for place in members(address))


def _is_loopback(address: str) -> bool:
    host = _SCHEME.sub("", address).rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return the host and the port of an address; None for one that is not of TCP, or a list."""
    if _OTHERS.match(address) or is_ring(address):
        return None
    host, _, port = _SCHEME.sub("", address).rpartition(":")
    if not host or "," in address or not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    return host.strip("[]"), int(port)
