"""Calls of each client while its daemon restarts again and again, behind thin lines that break.

The daemon ends three seconds after it was ready, by turns by SIGKILL and by SIGTERM, and starts at
once on the same port and state, which takes one or two seconds. In two seconds, a line carries
little more than 3 MB of an artifact, and the message that a cut loses has up to 0.5 MB.

On a busy machine a start takes longer. From its third start on, the daemon serves for at least
twice as long as it started: otherwise no client has 30 MB within its deadline, whatever it does.

Every client has a line of its own, with 2 MB/s for each connection, which cuts each download once.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1.module_service_pb2 import QueryUploadRequest
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import wasmkilnd
from tests.faults.proxy import GOOD, Line, Proxy
from tests.polyglot import builds
from tests.polyglot.builds import Asks, Said, Words

pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
ENGINE = "wasmtime-50.0.1"
FLAGS = ["--redis-url", "none", "--max-module-bytes", "64MiB", "--shutdown-grace-s", "0.2"]
BYTES_PER_S = 2_000_000
UP_S = 3.0
TIMEOUT: Words = ["--timeout-ms", "120000"]  # Beside other tests a daemon starts slowly.
# Sizes of the modules, and how many calls ask for each. Artifacts are a little larger.
LARGE_BYTES = 30_000_000
ASKED = {LARGE_BYTES: 4, 4_000_000: 4, 1_000_000: 8, 200_000: 10, 1_000: 24}
AT_ONCE = 10
CUT_AFTER_BYTES = 1_000_000
# The message that does not arrive whole, and what stands around it.
LOST_BYTES = 600 * 1024
# Of a download of 4 MB: the line's own one, and restarts.
MOST_BREAKS = 4
STALL_AFTER_BYTES = LARGE_BYTES // 3


@dataclass(frozen=True)
class Shelf:
    """A host store with artifacts, and the daemon that has it."""

    state: Path
    port: int
    key_file: Path
    artifacts: dict[Path, bytes]
    """By the file of its module."""

    def daemon(self) -> Daemon:
        """Start it, on the port that it had before."""
        return Daemon(self.state, [*FLAGS, "--listen", f"127.0.0.1:{self.port}"])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    state, key_file = folder / "state", folder / "key.pem"
    fresh_state(state, own_keys=True, engines=[ENGINE])
    artifacts = {}
    with Daemon(state, FLAGS) as daemon, daemon.client() as client:
        for size in ASKED:
            module = folder / f"{size}.wasm"
            module.write_bytes(wasm.with_data(size, 1))
            artifacts[module] = client.compile(module, engine=ENGINE).bytes
        eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
    key_file.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(state)))
    return Shelf(state, int(daemon.address.rpartition(":")[2]), key_file, artifacts)


@pytest.fixture(scope="module", params=["python", *builds.PROGRAMS])
def asks(request: pytest.FixtureRequest, built: Callable[[str], Path]) -> Asks:
    """The program of each language."""
    if request.param == "python":
        return Asks("python", [sys.executable, builds.HERE / "asks.py"])
    return builds.PROGRAMS[request.param](built(request.param))


@dataclass(frozen=True)
class Download:
    """What came of a call."""

    said: Said
    is_right: bool
    size_bytes: int
    line: Proxy


def download(shelf: Shelf, asks: Asks, module: Path, out: Path) -> Download:
    """Ask for an artifact by a line of its own."""
    artifact = shelf.artifacts[module]
    flags: Words = ["--engine", ENGINE, "--key", shelf.key_file, *TIMEOUT]
    with Proxy(shelf.port) as line:
        cut = min(len(artifact) // 2, CUT_AFTER_BYTES)
        line.set(Line(bytes_per_s=BYTES_PER_S, cut_once_after_bytes=cut))
        said = asks.once(f"127.0.0.1:{line.port}", module, *flags, "--out", out)
    is_right = said.what == "compiled" and out.read_bytes() == artifact
    return Download(said, is_right, len(artifact), line)


def restart_until(shelf: Shelf, calls: Collection[Future[Any]]) -> int:
    """Restart the daemon until the calls have ended. Return how often."""
    for restarts in itertools.count():
        began_s = time.monotonic()
        with shelf.daemon() as daemon:
            least_s = 2 * (time.monotonic() - began_s) if restarts >= 2 else 0
            if not wait(calls, max(UP_S, least_s)).not_done:
                return restarts
            if restarts % 2:
                daemon.stop()
            else:
                daemon.kill()
    raise AssertionError


def test_no_call_fails_while_the_daemon_restarts(shelf: Shelf, asks: Asks, tmp_path: Path) -> None:
    """What is large travels at most 1.1 times. What is small travels again by the message.

    A message has half a megabyte, and one that was interrupted counts for nothing.
    """
    modules = [
        module
        for module, times in zip(shelf.artifacts, ASKED.values(), strict=True)
        for _ in range(times)
    ]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        calls = [
            threads.submit(download, shelf, asks, module, tmp_path / f"{at}")
            for at, module in enumerate(modules)
        ]
        restarts = restart_until(shelf, calls)
    assert restarts >= 2
    done = [call.result() for call in calls]
    assert len(done) == 50
    assert [each.said for each in done if not each.is_right] == []
    assert {each.line.cuts for each in done} == {1}
    # Nobody sends a module that the daemon has.
    assert max(each.line.sent_bytes for each in done) < 64 * 1024
    large = [each for each in done if each.size_bytes >= LARGE_BYTES]
    received_bytes = sum(each.line.received_bytes for each in large)
    copies = received_bytes / sum(each.size_bytes for each in large)
    print(f"{asks.language}: {copies:.3f} copies of what is large, {restarts} restarts")
    assert copies <= 1.1
    for each in done:
        if each not in large:
            assert each.line.received_bytes <= each.size_bytes + MOST_BREAKS * LOST_BYTES


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_upload_resumes(shelf: Shelf, asks: Asks, tmp_path: Path, is_killed: bool) -> None:
    """A daemon that was killed has forgotten what it held of an upload, which starts again."""
    module = tmp_path / "module.wasm"
    module.write_bytes(content := wasm.with_data(LARGE_BYTES, sum(f"{asks}{is_killed}".encode())))
    query = QueryUploadRequest(sha256=hashlib.sha256(content).hexdigest())
    with ExitStack() as stack:
        daemon = stack.enter_context(shelf.daemon())
        channel = stack.enter_context(grpc.insecure_channel(daemon.address))
        query_upload = ModuleServiceStub(channel).QueryUpload
        line = stack.enter_context(Proxy(shelf.port))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        line.set(Line(stall_after_sent_bytes=STALL_AFTER_BYTES))
        flags: Words = ["--engine", ENGINE, "--load", "yes", *TIMEOUT]
        loading = threads.submit(asks.once, f"127.0.0.1:{line.port}", module, *flags)

        def wait_until_held(due: int) -> None:
            eventually(
                lambda: query_upload(query).held_bytes > due or loading.done(),
                "too little arrives",
            )

        wait_until_held(9 * STALL_AFTER_BYTES // 10)
        line.cut()
        wait_until_held(18 * STALL_AFTER_BYTES // 10)
        sent_bytes = line.sent_bytes
        line.set(GOOD)
        if is_killed:
            daemon.kill()
            stack.enter_context(shelf.daemon())
        else:
            line.cut()
        said = loading.result()
    assert (said.what, said.text) == ("loaded", query.sha256)
    again_bytes = line.sent_bytes - sent_bytes
    if is_killed:
        assert LARGE_BYTES <= again_bytes <= 1.1 * LARGE_BYTES
    else:
        assert line.sent_bytes <= 1.1 * LARGE_BYTES
