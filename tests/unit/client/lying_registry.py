"""A registry of a few lines that lies as a test tells it to."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.oci import Image


class LyingRegistry:
    """Serves one image under any repository and tag; `lies` may answer instead."""

    def __init__(self, image: Image) -> None:
        self._top = image
        self._manifests = {_digest(each.content): each for each in image.all_manifests()}
        self._blobs = {_digest(each): each for each in image.all_blobs()}
        # By what a path contains; a lie that returns False lets the truth be told.
        self.lies: dict[str, Callable[[BaseHTTPRequestHandler], bool | None]] = {}
        # The path and the Authorization of each request.
        self.seen: list[tuple[str, str | None]] = []
        self.over = threading.Event()
        self.host = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        self.seen.append((request.path, request.headers.get("Authorization")))
        for part, lie in self.lies.items():
            if part in request.path and lie(request) is not False:
                return
        kind, name = request.path.split("/")[-2:]
        if kind == "manifests":
            found = self._manifests.get(name, self._top)
            send(request, 200, found.content, {"Content-Type": found.media_type})
        elif kind == "blobs" and name in self._blobs:
            send(request, 200, self._blobs[name])
        else:
            send(request, 404)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a whole answer."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: a caller who ends a handshake would seem to have a traceback."""


@contextmanager
def lying_registry(image: Image, tls: ssl.SSLContext | None = None) -> Iterator[LyingRegistry]:
    """Run one, which listens at its `host`."""
    registry = LyingRegistry(image)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                registry.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has had enough

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        # The handshake belongs to the connection's own thread.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    registry.host = f"127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    try:
        yield registry
    finally:
        registry.over.set()
        server.shutdown()
        serving.join()
        server.server_close()
