"""Thousands of HTTP requests that never end, and answers that the attacker does not read."""

from __future__ import annotations

from collections import Counter

from tests.attack.target import Target
from tests.attack.ways.sockets import connect, hold_open, stands_unread
from tests.e2e.floods import PREFACE

CONNECTIONS = 1_600
_BEGINNINGS = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b"",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200,
    b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    PREFACE,
)


def attack(target: Target, until_s: float) -> Counter[str]:
    """Hold 1,600 connections to the admin port, with bad requests of five kinds."""
    return hold_open(
        CONNECTIONS,
        lambda before: connect(target.admin_host_and_port, _BEGINNINGS[before % len(_BEGINNINGS)]),
        stands_unread,
        until_s,
    )
