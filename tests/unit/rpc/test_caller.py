"""Whose turn a call takes."""

from __future__ import annotations

import pytest
from wasmkilnd.rpc.traffic import caller_of


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        # Everybody has the same address on loopback: a connection is a caller there.
        ("ipv4:127.0.0.1:47818", "ipv4:127.0.0.1:47818"),
        ("ipv6:%5B::1%5D:52626", "ipv6:%5B::1%5D:52626"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:52626", "ipv6:%5B::ffff:127.0.0.1%5D:52626"),
        # Another machine is one caller, however many connections it opens.
        ("ipv4:192.0.2.7:1000", "192.0.2.7"),
        ("ipv4:192.0.2.7:2000", "192.0.2.7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:3000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:1000", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1000", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/kiln.sock", "unix"),
        ("", ""),
        ("ipv4:what:1", "ipv4:what:1"),
    ],
)
def test_caller_of_peer(peer: str, caller: str) -> None:
    assert caller_of(peer) == caller
