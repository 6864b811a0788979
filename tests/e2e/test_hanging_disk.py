"""A disk that hangs: who needs it waits or is refused, nobody else notices, and the daemon ends."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln import Artifact, Client, WasmkilnError
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import Caller, failure_of
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.processes import eventually, send, stopped
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.test_cache import HOST_STORE, MEMORY
from tests.servers.slow_disk import command_with_disk, why_not

FLAGS = (
    *("--redis-url", "none", "--http-listen", "127.0.0.1:0"),
    *("--max-module-bytes", "20MiB", "--shutdown-grace-s", "3"),
)
SMALL = wasm.adder(1)
SMALL_DIGEST = wasm.digest(SMALL)
# More than the first window of a connection, and than a small tier in memory.
LARGE = wasm.with_data(12_000_000, tag=2)
# Longer than the daemon waits for a disk that has begun to answer.
PATIENT_S = 60


@dataclass
class Disk:
    """A disk that only the daemon sees, at ``folder``."""

    folder: Path
    pid_file: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The command of a daemon that sees it."""
        return command_with_disk(self.folder, self.pid_file, [WASMKILND])

    def hang(self) -> None:
        """Answer nothing from now on."""
        assert stopped(self._pid)

    def go_on(self) -> None:
        """Answer everything that waits."""
        send(signal.SIGCONT, self._pid)

    @property
    def _pid(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    if why := why_not():
        pytest.skip(f"no file system of its own: {why}")
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    return Disk(folder, tmp_path / "disk.pid")


@dataclass
class Under:
    """A daemon, and what is asked of it in threads."""

    daemon: Daemon
    client: Client

    def __post_init__(self) -> None:
        self._asked: list[threading.Thread] = []
        self.ended: list[object] = []

    def begin(self, ask: Callable[[], object]) -> None:
        """Ask in a thread; what comes of it is among those that have ``ended``."""

        def work() -> None:
            try:
                self.ended.append(ask())
            except (WasmkilnError, grpc.RpcError, OSError, http.client.HTTPException) as failure:
                self.ended.append(failure)

        self._asked.append(threading.Thread(target=work, daemon=True))
        self._asked[-1].start()

    def all_ended(self) -> list[object]:
        """Wait until everything has ended; return what came of it."""
        for each in self._asked:
            each.join(PATIENT_S)
            assert not each.is_alive()
        return self.ended

    def check_others(self) -> None:
        """Check that whoever needs no disk is answered."""
        for tag in range(3):
            with urllib.request.urlopen(f"{self.daemon.admin_url}/healthz", timeout=20) as said:
                assert said.status == 200
            assert self.client.health() == "SERVING"
            small = self.client.compile(SMALL)
            assert small.header.origin == MEMORY
            assert self.get(path_of(small)) == (200, small.bytes)
            assert self.client.compile(wasm.adder(100 + tag)).bytes

    def get(self, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection(self.daemon.http, timeout=20)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()


def path_of(artifact: Artifact) -> str:
    return f"/v1/artifacts/{artifact.header.module_sha256}/{artifact.header.fingerprint}"


def begun_over_http(under: Under, path: str, stack: ExitStack) -> http.client.HTTPResponse:
    """Begin a download, of which nobody reads the rest yet."""
    connection = http.client.HTTPConnection(under.daemon.http, timeout=PATIENT_S)
    stack.callback(connection.close)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, len(answer.read(1000))) == (200, 1000)
    return answer


def begun_over_grpc(under: Under, stack: ExitStack) -> Iterator[Any]:
    caller = stack.enter_context(Caller(under.daemon))
    asked = pb.CompileRequest(sha256=wasm.digest(LARGE), engine=ONE_ENGINE[0])
    answer: Iterator[Any] = iter(caller.stub.Compile(asked, timeout=PATIENT_S))
    assert next(answer).HasField("header")
    return answer


@contextmanager
def serving(disk: Disk, state: Path, *flags: str) -> Iterator[Under]:
    """A daemon that has compiled what is small and what is large."""
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, [*FLAGS, *flags], command=disk.command))
        stack.callback(disk.go_on)
        client = stack.enter_context(daemon.client(host_store_dir="none", timeout_s=20))
        client.compile(SMALL)
        client.load(LARGE, timeout_s=PATIENT_S)
        client.compile(LARGE, timeout_s=PATIENT_S)
        eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
        yield Under(daemon, client)


@pytest.fixture
def under(disk: Disk, engines: Installed, tmp_path: Path) -> Iterator[Under]:
    """A daemon whose host store is on the disk. Of what is large, memory holds nothing."""
    state, store = fresh_state(tmp_path / "state", engines=ONE_ENGINE), disk.folder / "store"
    with serving(disk, state, "--memory-bytes", "1MiB", "--host-store-dir", str(store)) as running:
        yield running


def test_reads_writes_and_downloads_that_hang_hold_up_nobody_else(under: Under, disk: Disk) -> None:
    stored = under.client.compile(LARGE)
    assert stored.header.origin == HOST_STORE
    with ExitStack() as stack:
        over_http = begun_over_http(under, path_of(stored), stack)
        over_grpc = begun_over_grpc(under, stack)
        disk.hang()
        under.begin(over_http.read)
        under.begin(lambda: b"".join(each.chunk for each in over_grpc))
        under.begin(lambda: under.get(path_of(stored)))
        under.begin(lambda: under.client.compile(wasm.digest(LARGE)))
        under.check_others()  # Each of its compilations is written there, too.
        disk.go_on()
        under.all_ended()
    # Of a download that goes on, what comes is right; one that took too long is cut off.
    rest = stored.bytes[1000:]
    assert all(found in (stored.bytes, rest) for found in under.ended if type(found) is bytes)

    def is_back() -> bool:
        return under.client.compile(LARGE, timeout_s=PATIENT_S).header.origin == HOST_STORE

    eventually(is_back, "the host store is not used again")
    assert under.get(path_of(stored)) == (200, stored.bytes)
    assert "Traceback" not in under.daemon.log


def test_an_evict_ends_though_the_disk_hangs_and_goes_on_behind_it(
    under: Under, disk: Disk
) -> None:
    disk.hang()
    gone = under.client.evict(all=True, timeout_s=PATIENT_S)
    assert (list(gone.unreachable_tiers), gone.modules) == (["host_store"], 1)
    under.client.compile(SMALL)
    under.check_others()
    disk.go_on()
    under.daemon.wait_for_log("an eviction has ended")
    assert not list(disk.folder.rglob(wasm.digest(LARGE)))


def test_a_daemon_whose_disk_hangs_ends(under: Under, disk: Disk) -> None:
    stored = under.client.compile(LARGE)
    with ExitStack() as stack:
        over_http = begun_over_http(under, path_of(stored), stack)
        over_grpc = begun_over_grpc(under, stack)
        disk.hang()
        under.begin(over_http.read)
        under.begin(lambda: list(over_grpc))
        under.client.compile(wasm.adder(200))
        os.kill(under.daemon.pid, signal.SIGTERM)
        assert under.daemon.stop() == 0
        under.all_ended()
    assert "Traceback" not in under.daemon.log


def test_a_state_directory_whose_disk_hangs_holds_up_nobody_else(
    disk: Disk, engines: Installed
) -> None:
    """Modules that were uploaded are there, too: they are sent, and given to jobs."""
    state = fresh_state(disk.folder / "state", engines=ONE_ENGINE)
    asked = pb.CompileRequest(sha256=wasm.digest(LARGE), skip_cache_lookup=True, omit_artifact=True)
    audited = "--workers", "2", "--audit-file", str(disk.folder / "audit")
    with serving(disk, state, *audited) as under, Caller(under.daemon) as caller:
        module = f"/v1/modules/{wasm.digest(LARGE)}"
        assert under.get(module) == (200, LARGE)
        disk.hang()
        compiling = caller.stub.Compile(asked, timeout=PATIENT_S)
        under.begin(lambda: under.get(module))
        under.begin(lambda: under.client.pin(SMALL_DIGEST))
        os.kill(under.daemon.pid, signal.SIGHUP)
        under.check_others()
        code, reason, about, _ = failure_of(compiling)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL")
        assert about["limit"] == "uploads"
        under.check_others()
        assert under.daemon.stop() == 0
        under.all_ended()
        assert "Traceback" not in under.daemon.log
