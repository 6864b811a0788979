"""The Python client behind a line that breaks: what is large crosses it once."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wasmkiln import AsyncClient, Client

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon
from tests.e2e.fixtures import serving
from tests.e2e.programs import WASMKILN, run

FLAGS = ["--redis-url", "none", "--max-module-bytes", "128MiB", "--max-artifact-bytes", "256MiB"]
# Faster than that, and more is lost in the buffers of the slower end than on its way.
BYTES_PER_S = 25_000_000

kiln = serving(ENGINE, flags=FLAGS)


class Line:
    """Passes connections on, counts bytes, and breaks the one that carried too many one way."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = {"up": 0, "down": 0}
        self.breaks = {"up": 0, "down": 0}
        self._most_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, count_bytes: int, times: int) -> None:
        """Break so many connections, each way, once they carried so many bytes that way."""
        self.carried = {"up": 0, "down": 0}
        self._most_bytes, self.breaks = count_bytes, {"up": times, "down": times}

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for way in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while chunk := source.recv(64 * 1024):
                self.carried[way] += len(chunk)
                carried += len(chunk)
                sink.sendall(chunk)
                if self.breaks[way] and carried >= self._most_bytes:
                    self.breaks[way] -= 1
                    break
                time.sleep(len(chunk) / BYTES_PER_S)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def line_to(daemon: Daemon) -> Iterator[Line]:
    line = Line(daemon.address)
    try:
        yield line
    finally:
        line.close()


def test_100_mb_that_are_cut_ten_times_each_way_come_once(kiln: Daemon, tmp_path: Path) -> None:
    module, size_bytes = tmp_path / "large.wasm", 100 * 10**6
    module.write_bytes(wasm.with_data(size_bytes, tag=1))
    with line_to(kiln) as line, Client(line.address, timeout_s=150, max_attempts=1) as client:
        line.break_after(size_bytes // 11, times=10)
        artifact = client.compile(module, engine=ENGINE)
    assert line.breaks == {"up": 0, "down": 0}
    assert line.carried["up"] <= 1.05 * module.stat().st_size
    assert line.carried["down"] <= 1.05 * len(artifact.bytes)
    assert artifact.intact()
    assert len(artifact.bytes) >= size_bytes


def test_the_command_and_asyncio_do_the_same(kiln: Daemon, tmp_path: Path) -> None:
    module, target = tmp_path / "large.wasm", tmp_path / "large.cwasm"
    with line_to(kiln) as line:

        async def compiled() -> bytes:
            async with AsyncClient(line.address, timeout_s=120) as client:
                return (await client.compile(module, engine=ENGINE)).bytes

        for tag in (2, 3):
            module.write_bytes(wasm.with_data(12 * 10**6, tag))
            line.break_after(3 * 10**6, times=3)
            if tag == 2:
                artifact = asyncio.run(compiled())
            else:
                words = ["--address", line.address, "--json", "--timeout", "120"]
                done = run(WASMKILN, *words, "load", str(module))
                assert json.loads(done.stdout)["modules"][0]["size_bytes"] == module.stat().st_size
                words += ["compile", str(module), "--engine", ENGINE, "-o", str(target)]
                assert run(WASMKILN, *words).returncode == 0
                artifact = target.read_bytes()
            assert line.breaks == {"up": 0, "down": 0}
            assert len(artifact) >= 12 * 10**6
