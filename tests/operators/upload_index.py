"""A package index on loopback that takes uploads, as `uv publish` and `npm publish` make them."""

from __future__ import annotations

import email
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class UploadIndex:
    """What arrived: files by name, and who sent them."""

    def __init__(self, port: int) -> None:
        self.files: dict[str, bytes] = {}
        self.credentials: set[str] = set()
        self.upload_url = f"http://127.0.0.1:{port}/legacy/"
        self.index_url = f"http://127.0.0.1:{port}/simple/"
        self.npm_registry = f"http://127.0.0.1:{port}/npm/"
        # What npm knows of the package.
        self.npm: dict[str, Any] = {}

    def take(self, content_type: str, body: bytes) -> bool:
        """Keep the file of a form; return whether its digest is what the form says."""
        form = email.message_from_bytes(
            b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
        )
        fields: dict[str, bytes] = {}
        for part in form.walk():
            if name := part.get_param("name", header="content-disposition"):
                fields[part.get_filename() or str(name)] = part.get_payload(decode=True)  # type: ignore[assignment]
        [(name, content)] = [each for each in fields.items() if each[0].endswith((".whl", ".gz"))]
        if hashlib.sha256(content).hexdigest().encode() != fields["sha256_digest"]:
            return False
        self.files[name] = content
        return True


@contextmanager
def serve_uploads() -> Iterator[UploadIndex]:
    """Serve an empty index until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            index.credentials.add(self.headers.get("Authorization", ""))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200 if index.take(self.headers["Content-Type"], body) else 400, b"")

        def do_PUT(self) -> None:
            index.npm = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(201, b"{}")

        def do_GET(self) -> None:
            if self.path.startswith("/npm/"):
                self._answer(200 if index.npm else 404, json.dumps(index.npm).encode())
                return
            name = self.path.rstrip("/").rpartition("/")[2]
            if name in index.files:
                self._answer(200, index.files[name])
                return
            links = "".join(
                f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
                for file, data in index.files.items()
            )
            self._answer(200 if links else 404, links.encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index = UploadIndex(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()
