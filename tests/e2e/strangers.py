"""Strangers at a daemon's ports: thousands of raw sockets that send bad input."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

HALF = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half: "
WHOLE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
SENT = {
    "half": HALF,
    "silent": b"",
    "pipelined": WHOLE * 200,
    "unread": WHOLE,
    "status page": b"".join(
        b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
        for path in (b"/", b"/status", b"/status.json", b"/status/page.js") * 20
    ),
    "headers": b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(5000)),
    "long header": HALF + b"a" * 1_000_000,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 64,
    "upgrade": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + b"a" * 100_000,
    "no http": bytes(range(256)) * 16,
    "post": b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    + b"a" * 100_000,
    "chunks": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"5\r\nhello\r\n" * 10_000,
}
"""What a stranger may say to an HTTP port, by name."""


class Strangers:
    """Hold ``count`` connections on which ``data`` was sent, and open those again that are closed.

    Nothing that the daemon answers is read. Ends with the context.
    """

    def __init__(
        self, connect: Callable[[], socket.socket], data: bytes, count: int, pause_s: float = 0.2
    ) -> None:
        """``connect`` makes a connection; one that was closed is opened again after a pause."""
        self.opened = 0
        self._connect = connect
        self._data = data
        self._count = count
        self._pause_s = pause_s
        self._over = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Strangers:
        self._thread.start()
        assert self._begun.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(60)

    def _work(self) -> None:
        with selectors.DefaultSelector() as open_now:
            while not self._over.is_set():
                for _ in range(self._count - len(open_now.get_map())):
                    if self._over.is_set() or not (sock := self._open()):
                        break  # Whoever listens takes no more of them: try again later.
                    open_now.register(sock, selectors.EVENT_READ)
                    self.opened += 1
                self._begun.set()
                for key, _ in open_now.select(0):
                    if _is_closed(key.fileobj):  # type: ignore[arg-type]
                        open_now.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                time.sleep(self._pause_s)
            for key in list(open_now.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _open(self) -> socket.socket | None:
        try:
            sock = self._connect()
        except OSError:
            return None
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # It may be closed already: then it is found so.
            sock.send(self._data)
        return sock


def over_tcp(address: str) -> Callable[[], socket.socket]:
    """Return what connects to ``host:port``."""
    host, _, port = address.rpartition(":")
    return lambda: socket.create_connection((host.strip("[]"), int(port)), timeout=2)


def over_unix(path: str, *, patient: bool) -> Callable[[], socket.socket]:
    """Return what connects to the socket at ``path``, and waits to be accepted if ``patient``."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(patient)
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        sock.settimeout(10)
        return sock

    return connect


def _is_closed(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
