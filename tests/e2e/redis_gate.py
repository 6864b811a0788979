"""A gate in front of a Redis, which can keep its answers back while a test looks."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.processes import eventually

_READ_BYTES = 64 * 1024


class Gate:
    """Passes connections to a port of 127.0.0.1 on to a server's socket."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._asked = b""
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let no answer through meanwhile."""
        self._asked = b""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def wait_for(self, words: str) -> None:
        """Wait until a question with ``words`` in it has come since the gate was closed."""
        eventually(lambda: words.encode() in self._asked, f"nobody asks for {words}")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # The end: the listener is closed.
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._target))
                self._sockets += (near, far)
                for carry in (self._questions, self._answers):
                    threading.Thread(target=carry, args=(near, far), daemon=True).start()

    def _questions(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := near.recv(_READ_BYTES):
                far.sendall(chunk)
                if not self._open.is_set():
                    self._asked += chunk
            far.shutdown(socket.SHUT_WR)

    def _answers(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := far.recv(_READ_BYTES):
                self._open.wait()
                near.sendall(chunk)
            near.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._sockets):
            each.close()
