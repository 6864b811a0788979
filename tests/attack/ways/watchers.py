"""Connections by the thousand, each with one call that never ends."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter

from tests.attack.target import Target
from tests.attack.ways.sockets import begin_http2, stands
from tests.e2e.floods import DATA, END_HEADERS, END_STREAM, HEADERS, frame, request_headers

CONNECTIONS = 1_100


def attack(target: Target, until_s: float) -> Counter[str]:
    """Keep 1,100 connections open with a Watch on each; open those anew that are closed."""
    done: Counter[str] = Counter()
    call = frame(HEADERS, END_HEADERS, 1, request_headers("/grpc.health.v1.Health/Watch"))
    call += frame(DATA, END_STREAM, 1, bytes(5))
    held: list[socket.socket] = []
    try:
        while time.monotonic() < until_s:
            standing = [sock for sock in held if stands(sock)]
            for sock in set(held) - set(standing):
                sock.close()
            done["closed by the daemon"] += len(held) - len(standing)
            held = standing
            while len(held) < CONNECTIONS and time.monotonic() < until_s:
                try:
                    sock = begin_http2(target.host_and_port)
                except OSError:
                    done["refused"] += 1
                    break
                held.append(sock)
                with contextlib.suppress(OSError):
                    sock.sendall(call)
                    done["watches"] += 1
            time.sleep(0.1)
    finally:
        for sock in held:
            sock.close()
    return done
