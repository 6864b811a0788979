"""Requests that are cheap to send and expensive to parse, and long strings."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from itertools import cycle

import grpc

from tests.attack.target import Target
from tests.e2e.test_dear_requests import REFUSED

_TIMEOUT_S = 60.0


def attack(target: Target, until_s: float) -> Counter[str]:
    """Send them all in turn, four at a time."""
    began_s = time.monotonic()
    requests = [(method, make()) for method, make, _ in REFUSED.values()]
    until_s += time.monotonic() - began_s  # To make them is no attack yet.
    done: Counter[str] = Counter()
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(target.address, options) as channel:
        waiting: list[grpc.Future] = []
        for method, body in cycle(requests):
            if time.monotonic() >= until_s:
                break
            call = channel.stream_stream(method)(iter((body,)), timeout=_TIMEOUT_S)
            waiting.append(call)
            done["bytes"] += len(body)
            if len(waiting) >= 4:
                _ended(waiting.pop(0), done)
        for call in waiting:
            _ended(call, done)
    return done


def _ended(call: grpc.Future, done: Counter[str]) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    done[call.code().name] += 1
