"""Connections by the thousand, without a thread for each."""

from __future__ import annotations

import socket

from tests.e2e.floods import PREFACE, SETTINGS, frame

_TIMEOUT_S = 1.0


def begin_http2(where: tuple[str, int]) -> socket.socket:
    """Answer a connection over which HTTP/2 has begun. Raises OSError."""
    sock = socket.create_connection(where, _TIMEOUT_S)
    sock.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0))
    return sock


def stands(sock: socket.socket) -> bool:
    """Take in what the peer has said; answer whether the connection still stands."""
    try:
        while sock.recv(65536, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_open(sock: socket.socket) -> bool:
    """Whether the peer has not closed it. Nothing is read."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False
