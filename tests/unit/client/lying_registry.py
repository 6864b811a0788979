"""A registry of a few lines that lies as a test tells it to."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.oci import Image


class LyingRegistry:
    """Serves one image under any repository and tag; `lies` may answer instead."""

    def __init__(self, image: Image) -> None:
        self.top = image
        self.manifests = {
            f"sha256:{hashlib.sha256(each.content).hexdigest()}": each
            for each in image.all_manifests()
        }
        self.blobs = {
            f"sha256:{hashlib.sha256(each).hexdigest()}": each for each in image.all_blobs()
        }
        # By what a path contains; a lie that returns False lets the truth be told.
        self.lies: dict[str, Callable[[BaseHTTPRequestHandler], bool | None]] = {}
        # The path and the Authorization of each request.
        self.seen: list[tuple[str, str | None]] = []
        # The address of each connection.
        self.callers: set[tuple[str, int]] = set()
        self.over = threading.Event()
        self.host = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        self.callers.add(request.client_address)
        self.seen.append((request.path, request.headers.get("Authorization")))
        for part, lie in self.lies.items():
            if part in request.path and lie(request) is not False:
                return
        kind, name = request.path.split("/")[-2:]
        if kind == "manifests":
            found = self.manifests.get(name, self.top)
            send(request, 200, found.content, {"Content-Type": found.media_type})
        elif kind == "blobs" and name in self.blobs:
            send(request, 200, self.blobs[name])
        else:
            send(request, 404)


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes = b"",
    headers: dict[str, str] | None = None,
) -> None:
    """Send a whole answer."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)


@contextmanager
def lying_registry(
    image: Image, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[LyingRegistry]:
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

    server = ThreadingHTTPServer((address, 0), Handler)
    if tls is not None:
        # The handshake belongs to the connection's own thread.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.daemon_threads = True
    registry.host = f"{address}:{server.server_address[1]}"
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    try:
        yield registry
    finally:
        registry.over.set()
        server.shutdown()
        serving.join()
        server.server_close()
