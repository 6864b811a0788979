"""A package index on loopback that serves wheels made on the spot."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(package: str, version: str, code: str = "") -> bytes:
    """Return a wheel of a package with one module."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_base64(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return written.getvalue()


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@contextmanager
def serving(file_at: Callable[[str], bytes | None]) -> Iterator[str]:
    """Serve by HTTP what ``file_at`` returns for a path; yield the address."""

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = file_at(self.path)
            self.send_response(404 if body is None else 200)
            kind = "text/html" if self.path.endswith("/") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve_wheels(wheels: Mapping[tuple[str, str], bytes], claimed: str = "") -> Iterator[str]:
    """Serve wheels by package and version; yield the index's URL.

    ``claimed`` is the SHA-256 that the index claims for each, whatever it serves.
    """
    suffix = f"#sha256={claimed}" if claimed else ""

    def file_at(path: str) -> bytes | None:
        *_, package, file = path.split("/")
        links = {
            f"{name.replace('-', '_')}-{version}-py3-none-any.whl": data
            for (name, version), data in wheels.items()
            if name == package
        }
        page = "".join(f'<a href="{link}{suffix}">{link}</a>' for link in links)
        return links.get(file) if file else page.encode() or None

    with serving(file_at) as address:
        yield f"{address}/simple/"
