"""Who calls, and how urgent it is."""

from __future__ import annotations

from urllib.parse import unquote

from wasmkilnd.errors import invalid_request, quoted
from wasmkilnd.network import address_of, host_of

PRIORITY_KEY = "wasmkiln-priority"
_PRIORITIES = {"": False, "interactive": False, "background": True}


def caller_of(peer: str) -> str:
    """Answer whose turn a call takes, from gRPC's name of its peer.

    Another machine is one caller, however many connections it opens: its address,
    and of IPv6 the network of 64 bits that one machine commonly owns. On loopback
    each connection is one, since every caller has the same address there. All that
    comes by Unix sockets is one caller: gRPC does not tell them apart.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]")
    try:
        address = address_of(host)
    except ValueError:
        return peer
    return peer if address.is_loopback else host_of(address)


def is_background(priority: str) -> bool:
    """Answer whether a call asked to yield to others. Raises INVALID_REQUEST."""
    if priority not in _PRIORITIES:
        raise invalid_request(
            f"the metadata {PRIORITY_KEY} is 'background' or 'interactive', not {quoted(priority)}",
            PRIORITY_KEY,
        )
    return _PRIORITIES[priority]
