"""Thousands of connections, without a thread for each."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable

from tests.e2e.floods import PREFACE, SETTINGS, frame

_TIMEOUT_S = 1.0
_LOOK_S = 0.1


def hold_open(
    count: int,
    open_one: Callable[[int], socket.socket],
    stands: Callable[[socket.socket], bool],
    until_s: float,
) -> Counter[str]:
    """Keep ``count`` connections until ``until_s``, and open those again that are closed.

    ``open_one`` is told how many there were before, and may raise OSError. Returns how many
    were opened, refused and closed by the daemon.
    """
    done: Counter[str] = Counter()
    held: list[socket.socket] = []
    try:
        while time.monotonic() < until_s:
            standing = [sock for sock in held if stands(sock)]
            for sock in set(held) - set(standing):
                sock.close()
            done["closed by the daemon"] += len(held) - len(standing)
            held = standing
            while len(held) < count and time.monotonic() < until_s:
                try:
                    held.append(open_one(done["connections"]))
                except OSError:
                    done["refused"] += 1
                    break
                done["connections"] += 1
            time.sleep(_LOOK_S)
    finally:
        for sock in held:
            sock.close()
    return done


def connect(where: tuple[str, int], first: bytes) -> socket.socket:
    """Return a connection over which ``first`` was sent. Raises OSError.

    To read from it does not block. A socket with a time-out would wait for the peer, even with
    MSG_DONTWAIT.
    """
    sock = socket.create_connection(where, _TIMEOUT_S)
    try:
        sock.sendall(first)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


HTTP2 = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0)
"""How a caller begins HTTP/2 without waiting for the daemon's settings."""


def read_and_stands(sock: socket.socket) -> bool:
    """Read what the peer has sent; return whether the connection is still open."""
    try:
        while sock.recv(65536, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def stands_unread(sock: socket.socket) -> bool:
    """Return whether the peer has not closed the connection. Nothing is read."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False
