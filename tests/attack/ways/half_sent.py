"""HTTP requests by the thousand that never end, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter

from tests.attack.target import Target
from tests.attack.ways.sockets import is_open
from tests.e2e.floods import PREFACE

CONNECTIONS = 1_600
_BEGINNINGS = (
    b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nX-Slow: ",
    b"",
    b"GET /metrics HTTP/1.1\r\nHost: daemon\r\n\r\n" * 200,
    b"POST /metrics HTTP/1.1\r\nHost: daemon\r\nTransfer-Encoding: chunked\r\n\r\n",
    PREFACE,
)


def attack(target: Target, until_s: float) -> Counter[str]:
    """Hold 1,600 connections to the admin port, each with a request of another bad kind."""
    done: Counter[str] = Counter()
    held: list[socket.socket] = []
    try:
        while time.monotonic() < until_s:
            standing = [sock for sock in held if is_open(sock)]
            for sock in set(held) - set(standing):
                sock.close()
            done["closed by the daemon"] += len(held) - len(standing)
            held = standing
            while len(held) < CONNECTIONS and time.monotonic() < until_s:
                try:
                    sock = socket.create_connection(target.admin_host_and_port, 1.0)
                except OSError:
                    done["refused"] += 1
                    break
                held.append(sock)
                done["connections"] += 1
                with contextlib.suppress(OSError):
                    sock.sendall(_BEGINNINGS[done["connections"] % len(_BEGINNINGS)])
            time.sleep(0.1)
    finally:
        for sock in held:
            sock.close()
    return done
