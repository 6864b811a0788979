"""Which addresses count as one host."""

from __future__ import annotations

import ipaddress


def host_of(address: str) -> str:
    """Return the host that an IP address belongs to. Raises ValueError.

    It is the address, and of IPv6 the network of 64 bits that one machine commonly owns.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if not ip.ipv4_mapped:
            return str(ipaddress.ip_network((ip.packed, 64), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)
