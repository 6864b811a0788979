"""Thousands of connections, each with one call that never ends."""

from __future__ import annotations

from collections import Counter

from tests.attack.target import Target
from tests.attack.ways.sockets import HTTP2, connect, hold_open, read_and_stands
from tests.e2e.floods import DATA, END_HEADERS, END_STREAM, HEADERS, frame, request_headers

CONNECTIONS = 1_100


def attack(target: Target, until_s: float) -> Counter[str]:
    """Keep 1,100 connections open with a Watch on each."""
    call = frame(HEADERS, END_HEADERS, 1, request_headers("/grpc.health.v1.Health/Watch"))
    call += frame(DATA, END_STREAM, 1, bytes(5))
    return hold_open(
        CONNECTIONS,
        lambda _: connect(target.host_and_port, HTTP2 + call),
        read_and_stands,
        until_s,
    )
