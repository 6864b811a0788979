"""Routing by module: each module's calls go to one daemon of several, the same one every time.

An address that begins with `ring:` names several daemons: by a list of IP addresses, by a DNS name
that has several, or in gRPC's own way as in `ring:dns://server/name:port`. gRPC then puts them on a
ring and chooses by a hash of the metadata `wasmkiln-module` (gRFC A42 and A76).
docs/how-to/routing.md says what that is good for.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re

RING = "ring:"
MODULE = "wasmkiln-module"
"""The metadata with the SHA-256 of the module that a call is about."""
ENABLED_BY = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""gRPC's own variable, without which its core ignores requestHashHeader."""
OPTIONS = (
    (
        "grpc.service_config",
        json.dumps(
            {"loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": MODULE}}]}
        ),
    ),
    # Whatever a DNS server says about how to balance.
    ("grpc.service_config_disable_resolution", 1),
)

_NAMED = re.compile(r"(?:dns|ipv4|ipv6|xds):")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:,/\s]+):([0-9]{1,5})")


def is_ring(address: str) -> bool:
    """Return whether an address names several daemons."""
    return address.startswith(RING)


def members(address: str) -> list[str]:
    """Return the parts of an address, each `host:port`; one unless it is a ring with a list."""
    return address.removeprefix(RING).split(",") if is_ring(address) else [address]


def check_ring(address: str) -> None:
    """Raise ValueError unless a ring is a list of IP addresses of one kind, or one name."""
    if _NAMED.match(address, len(RING)):
        return  # gRPC says what is wrong with it.
    places = members(address)
    versions = set()
    for place in places:
        found = _PLACE.fullmatch(place)
        if not found or not 0 < int(found[2]) < 65536:
            raise ValueError(
                f"cannot use the address {address}: expected {RING}host:port, or a list as in "
                f"{RING}10.0.0.7:50051,10.0.0.8:50051"
            )
        versions.add(_version(found[1]))
    if len(places) > 1 and versions not in ({4}, {6}):
        raise ValueError(
            f"cannot use the address {address}: a list has IPv4 addresses or IPv6 ones in [], and "
            f"no names; for names, have one DNS name with the addresses of all: {RING}name:port"
        )


def target(address: str) -> str:
    """Return what gRPC is to connect to."""
    if not is_ring(address):
        return address
    if _NAMED.match(address, len(RING)):
        return address.removeprefix(RING)
    [first, *_] = places = members(address)
    version = _version(first.rpartition(":")[0])
    return f"{f'ipv{version}' if version else 'dns'}:{','.join(places)}"


def enable() -> None:
    """Have gRPC's core heed requestHashHeader, unless the environment says otherwise."""
    os.environ.setdefault(ENABLED_BY, "true")


def about(sha256: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call about a module."""
    return ((MODULE, sha256),) if sha256 else ()


def _version(host: str) -> int:
    """Return 4 or 6 for an IP address, 0 for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return 0
