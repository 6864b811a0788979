"""A server that ends in the middle of each call, as a daemon does that is killed."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS = 1
# Length 0, type 4, no flags, stream 0.
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextlib.contextmanager
def dying_server() -> Iterator[str]:
    """Speak HTTP/2 until a call arrives, then close the connection. Yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener,), daemon=True)
        accepting.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(60)


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the listener was shut down
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                _until_a_call(connection)


def _until_a_call(connection: socket.socket) -> None:
    connection.settimeout(60)
    stream = connection.makefile("rb")
    connection.sendall(_SETTINGS)
    stream.read(len(_PREFACE))
    kind = None
    while kind != _HEADERS:
        start = stream.read(9)
        if len(start) < 9:
            return
        kind = start[3]
        stream.read(int.from_bytes(start[:3], "big"))
