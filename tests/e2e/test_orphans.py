"""SIGKILL at many moments: nothing is left behind, and the next start works."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wasmkiln import Client, ConnectionFailed, WasmkilnError
from wasmkiln.v1 import types_pb2

from tests.corpus.fetch import fetch
from tests.corpus.modules import BY_NAME
from tests.e2e import wasm
from tests.e2e.broken_engines import SLOW, copy_engine
from tests.e2e.daemon import fresh_state
from tests.e2e.processes import (
    children_of,
    embedded,
    eventually,
    jobs_of,
    workers_and_jobs,
)
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.test_cache import settled
from tests.servers.redis_server import free_ports

ENGINE = "wasmer-1.1.0"


class Victim:
    """A daemon on a port, a socket file and a state directory that the next one wants too."""

    def __init__(self, state: Path, port: int) -> None:
        self.state = state
        self.port = port
        self.socket = state / "kiln.sock"
        self.address = f"127.0.0.1:{port}"
        with (state / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(WASMKILND, "serve", "--state-dir", str(state)),
                    *("--listen", f"{self.address},unix:{self.socket}", "--admin-listen", "none"),
                    *("--workers", "1", "--log-format", "json", "--host-store-bytes", "0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def serves(self) -> bool:
        with Client(self.address, max_attempts=1, timeout_s=5) as client:
            try:
                return client.health() == "SERVING"
            except ConnectionFailed:
                return False

    def jobs(self) -> list[int]:
        return jobs_of(self.process.pid)

    def kill(self) -> None:
        """Kill the daemon alone; its other processes have to end by themselves."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        # Sooner than any of them would end because its own time is over.
        eventually(
            lambda: not workers_and_jobs(self.process.pid), "it left workers or jobs behind", 8
        )
        with socket.socket() as port, socket.socket(socket.AF_UNIX) as path:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", self.port))
            if self.socket.exists():
                assert path.connect_ex(str(self.socket)) != 0, "somebody holds the socket"
        eventually(lambda: not embedded(self.state), "the embedded server outlived the daemon")


class Bench:
    """One daemon after the other, each killed at another moment."""

    def __init__(self, state: Path) -> None:
        self._state = state
        [self._port] = free_ports(1)

    def kill_when(self, moment: Callable[[Victim], object], what: str) -> None:
        victim = Victim(self._state, self._port)
        try:
            eventually(lambda: moment(victim), f"no moment of: {what}; see {self._state}/log", 60)
        finally:
            victim.kill()

    def run(self, work: Callable[[Victim, Client], None]) -> None:
        """Have a daemon serve; kill it after ``work``."""
        victim = Victim(self._state, self._port)
        try:
            eventually(victim.serves, f"it does not start; see {self._state}/log", 60)
            with Client(victim.address, max_attempts=1) as client:
                work(victim, client)
        finally:
            victim.kill()


def test_killed_while_it_starts(engines: Installed, tmp_path: Path) -> None:
    bench = Bench(fresh_state(tmp_path / "state", engines=[ENGINE]))
    bench.kill_when(lambda victim: workers_and_jobs(victim.process.pid), "the first worker")
    bench.kill_when(lambda victim: victim.jobs(), "the first job")
    bench.kill_when(lambda victim: embedded(victim.state), "the embedded server")
    for delay_s in (0.1, 0.6, 1.2):
        started = time.monotonic()
        bench.kill_when(lambda _: time.monotonic() - started > delay_s, "time")  # noqa: B023
    bench.kill_when(lambda victim: victim.serves(), "the first answer")
    bench.run(lambda _, client: check(client.compile(wasm.adder(1)).header.size_bytes))


def test_killed_while_an_engine_is_asked_what_it_can_do(engines: Installed, tmp_path: Path) -> None:
    """A job asks each question in a fork; this engine takes long to answer."""
    state = tmp_path / "state"
    copy_engine(state, "50.0.90", patch=SLOW)
    Bench(state).kill_when(lambda victim: children_of(*victim.jobs()), "a fork of a job")


def test_killed_while_it_works(engines: Installed, tmp_path: Path) -> None:
    bench = Bench(fresh_state(tmp_path / "state", engines=[ENGINE]))
    real = fetch(BY_NAME["itk-downsample-sigma"]).read_bytes()
    known: list[tuple[str, bytes]] = []

    def store(victim: Victim, client: Client) -> None:
        for module in (wasm.adder(1), real):
            artifact = client.compile(module)
            known.append((artifact.header.module_sha256, artifact.bytes))
        settled(client)
        time.sleep(1.2)  # The embedded server writes to its file every second.

    def look(client: Client) -> None:
        """Check that what was stored before the kills is there, and right."""
        for sha256, content in known:
            found = client.compile(sha256)
            assert found.header.origin == types_pb2.ORIGIN_REDIS
            assert found.bytes == content

    def compile_something(victim: Victim, client: Client) -> None:
        look(client)
        with ThreadPoolExecutor(1) as caller:
            # Each another: a killed daemon's turn to compile one expires only after a while.
            call = caller.submit(client.compile, wasm.nested_blocks(1_000_000, 1))
            eventually(victim.jobs, "no job started")
            victim.process.kill()
            check(isinstance(call.exception(), WasmkilnError))

    def drain(victim: Victim, client: Client) -> None:
        look(client)
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(client.compile, wasm.nested_blocks(1_000_000, 2))
            eventually(victim.jobs, "no job started")
            client.drain()
            victim.process.kill()
            check(isinstance(call.exception(), WasmkilnError))

    def write(victim: Victim, client: Client) -> None:
        look(client)
        client.compile(wasm.many_functions(3000))

    bench.run(store)
    for work in (compile_something, drain, write):
        bench.run(work)
    bench.run(lambda _, client: look(client))


def check(condition: object) -> None:
    assert condition
