"""The Python client behind a line that breaks, or a daemon that does: what is large comes once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import AsyncClient, Client, Phase

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILN, run
from tests.e2e.test_upload import Uploader
from tests.faults.proxy import Line as ThinLine
from tests.faults.proxy import Proxy

FLAGS = ["--redis-url", "none", "--max-module-bytes", "128MiB", "--max-artifact-bytes", "256MiB"]
# A message whose end does not arrive is lost, and what stands around it.
LOST_AT_MOST = 700 * 1024

kiln = serving(ENGINE, flags=FLAGS)


class Line:
    """Passes connections on, counts bytes, and breaks the one that carried too many one way.

    But not before what it carried has arrived: how much a slow machine loses, nobody knows.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = {"up": 0, "down": 0}
        self.breaks = {"up": 0, "down": 0}
        self._most_bytes = 0
        self._arrived: dict[str, Callable[[], int]] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, count_bytes: int, times: int, **arrived: Callable[[], int]) -> None:
        """Break so many connections once they carried so many bytes ``up`` or ``down``.

        What ``arrived`` names tells how many bytes have.
        """
        self.carried = {"up": 0, "down": 0}
        self._most_bytes, self._arrived = count_bytes, arrived
        self.breaks = dict.fromkeys(arrived, times)

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
        carried, arrived = 0, self._arrived.get(way, int)
        before = arrived()
        with suppress(OSError):
            while chunk := source.recv(64 * 1024):
                self.carried[way] += len(chunk)
                carried += len(chunk)
                sink.sendall(chunk)
                if self.breaks.get(way) and carried >= self._most_bytes:
                    there = before + carried - LOST_AT_MOST
                    eventually(lambda: arrived() >= there, "it does not arrive")  # noqa: B023
                    self.breaks[way] -= 1
                    break
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


class Seen:
    """The progress of a call."""

    done_bytes = 0

    def __call__(self, progress: Any) -> None:
        if progress.phase is Phase.DOWNLOADING:
            self.done_bytes = progress.done_bytes


def test_100_mb_that_are_cut_ten_times_each_way_come_once(kiln: Daemon, tmp_path: Path) -> None:
    path, size_bytes, seen = tmp_path / "large.wasm", 100 * 10**6, Seen()
    path.write_bytes(module := wasm.with_data(size_bytes, tag=1))
    with (
        Uploader(kiln) as direct,
        line_to(kiln) as line,
        Client(line.address, timeout_s=150) as client,
    ):
        line.break_after(
            *(size_bytes // 11, 10), up=lambda: direct.held(module), down=lambda: seen.done_bytes
        )
        artifact = client.compile(path, engine=ENGINE, on_progress=seen)
    assert line.breaks == {"up": 0, "down": 0}
    assert line.carried["up"] <= 1.05 * len(module)
    assert line.carried["down"] <= 1.05 * len(artifact.bytes)
    assert artifact.intact()
    assert len(artifact.bytes) >= size_bytes


def test_the_command_and_asyncio_do_the_same(kiln: Daemon, tmp_path: Path) -> None:
    path, target, size_bytes, seen = tmp_path / "m.wasm", tmp_path / "m", 12 * 10**6, Seen()
    cut = size_bytes // 4, 3
    with Uploader(kiln) as direct, line_to(kiln) as line:

        async def compiled() -> bytes:
            async with AsyncClient(line.address, timeout_s=120) as client:
                return (await client.compile(path, engine=ENGINE, on_progress=seen)).bytes

        path.write_bytes(module := wasm.with_data(size_bytes, tag=2))
        line.break_after(*cut, up=lambda: direct.held(module), down=lambda: seen.done_bytes)
        assert len(asyncio.run(compiled())) >= size_bytes
        assert line.breaks == {"up": 0, "down": 0}

        path.write_bytes(other := wasm.with_data(size_bytes, tag=3))
        line.break_after(*cut, up=lambda: direct.held(other))
        words = ["--address", line.address, "--json", "--timeout", "120"]
        done = run(WASMKILN, *words, "load", path)
        assert json.loads(done.stdout)["modules"][0]["size_bytes"] == len(other), done.stderr
        assert line.breaks == {"up": 0}
        assert not run(WASMKILN, *words, "compile", path, "--engine", ENGINE, "-o", target).stderr
        assert target.stat().st_size >= size_bytes


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_download_outlives_daemons(tmp_path: Path, kind: Any) -> None:
    """Two that are killed and one that is told to end; and nothing is compiled twice."""
    state, seen = fresh_state(tmp_path / "state", engines=[ENGINE]), Seen()
    flags = [*FLAGS, "--shutdown-grace-s", "0.2"]
    module, size_bytes = wasm.with_data(8 * 10**6, tag=4), 8 * 10**6

    def compiled(address: str) -> Any:
        async def awaited() -> Any:
            async with AsyncClient(address, timeout_s=120) as client:
                return await client.compile(module, **asked)

        asked: dict[str, Any] = {"engine": ENGINE, "skip_cache_lookup": True, "on_progress": seen}
        if kind is AsyncClient:
            return asyncio.run(awaited())
        with Client(address, timeout_s=120) as client:
            return client.compile(module, **asked)

    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, flags))
        port = int(daemon.address.rpartition(":")[2])
        with daemon.client() as direct:
            direct.load(module)
        line, pool = stack.enter_context(Proxy(port)), stack.enter_context(ThreadPoolExecutor(1))
        line.set(ThinLine(bytes_per_s=10**5))
        call = pool.submit(compiled, f"127.0.0.1:{line.port}")
        eventually(lambda: [*state.rglob("host_store/*/*/*/artifact")], "it is not kept")
        line.set(ThinLine(bytes_per_s=10**6))
        for part, end in enumerate((Daemon.kill, Daemon.stop, Daemon.kill), 1):
            due = part * size_bytes // 5
            eventually(lambda: seen.done_bytes > due or call.done(), "it stands")  # noqa: B023
            assert not call.done()
            end(daemon)
            again = [*flags, "--listen", f"127.0.0.1:{port}"]
            daemon = stack.enter_context(Daemon(state, again))
        artifact = call.result(120)
        assert daemon.metric("compiles_total", engine=ENGINE, outcome="ok") == 0
    assert hashlib.sha256(artifact.bytes).hexdigest() == artifact.header.artifact_sha256
    assert line.received_bytes <= len(artifact.bytes) + 3 * LOST_AT_MOST
