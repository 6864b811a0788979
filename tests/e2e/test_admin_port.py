"""Strangers at the admin port take nothing from calls, jobs, scrapes and probes."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND
from tests.e2e.strangers import SENT, Strangers, over_tcp, over_unix
from tests.e2e.wasm import constant
from tests.sizes import size

FEW = 700
"""Descriptors of the daemon: fewer than there are strangers."""
STRANGERS = 1600
FEWER = 200
"""The number of strangers that ask for something, or send a lot."""
HONEST_S = size(2.5, 0.8)
"""For how long the honest go on, and longer if need be: until each was served ``LEAST`` times."""
LEAST = 4
# Of what several thousand connections by strangers may leave in the log.
LOG_BYTES = 200_000

ENGINE = "wasmtime-50.0.1"
_tags = itertools.count(1)


def with_descriptors(count: int) -> tuple[str, ...]:
    """Return the command of a daemon that may have ``count`` descriptors open."""
    return ("prlimit", f"--nofile={count}:{count}", WASMKILND)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = fresh_state(tmp_path_factory.mktemp("state"), engines=(ENGINE,))
    with Daemon(state, ("--workers", "2"), command=with_descriptors(FEW)) as running:
        yield running


class Honest:
    """Calls, compiles, scrapes and probes, one after the other in each of several threads."""

    def __init__(self, daemon: Daemon, connect: Callable[[], http.client.HTTPConnection]) -> None:
        self._daemon = daemon
        self._connect = connect
        self._until = time.monotonic() + HONEST_S
        self.done = {"hit": 0, "compile": 0, "scrape": 0, "probe": 0}

    def run(self) -> dict[str, int]:
        """Return how many of each succeeded. Raises what the first that failed raises."""
        with ThreadPoolExecutor(4) as pool:
            works = [
                pool.submit(self._repeat, kind, work)
                for kind, work in (
                    ("hit", self._hit),
                    ("compile", self._compile),
                    ("scrape", lambda: self._get("/metrics")),
                    ("probe", lambda: self._get("/readyz")),
                )
            ]
            for work in works:
                work.result()
        return self.done

    def _repeat(self, kind: str, work: Callable[[], None]) -> None:
        while time.monotonic() < self._until or self.done[kind] < LEAST:
            work()
            self.done[kind] += 1
            time.sleep(0.02)

    # Each call on a connection of its own, which takes a descriptor, and without retries.

    def _hit(self) -> None:
        with Caller(self._daemon) as caller:
            caller.stub.GetCapabilities(pb.GetCapabilitiesRequest(), timeout=60)

    def _compile(self) -> None:
        with Caller(self._daemon) as caller:
            assert list(caller.compile(constant(next(_tags)), timeout=60))

    def _get(self, page: str) -> None:
        connection = self._connect()
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            assert answer.status == 200, answer.status
            assert answer.read()
        finally:
            connection.close()


def descriptors_of(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def admin_of(daemon: Daemon) -> str:
    return daemon.admin_url.removeprefix("http://")


def scrape(daemon: Daemon) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(admin_of(daemon), timeout=60)


@pytest.mark.parametrize("what", SENT)
def test_strangers_by_the_thousand_take_nothing_from_the_honest(daemon: Daemon, what: str) -> None:
    before, logged = descriptors_of(daemon), len(daemon.log)
    count = STRANGERS if what in ("half", "silent", "http2", "no http") else FEWER
    with Strangers(over_tcp(admin_of(daemon)), SENT[what], count):
        done = Honest(daemon, lambda: scrape(daemon)).run()
        assert descriptors_of(daemon) < FEW - 64
    assert min(done.values()) >= LEAST, done
    eventually(lambda: descriptors_of(daemon) <= before + 40, "descriptors do not come back")
    assert len(daemon.log) - logged < LOG_BYTES
    assert "Traceback" not in daemon.log


def test_a_unix_socket_is_as_hard_to_take(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    state = fresh_state(tmp_path / "state", engines=(ENGINE,))
    flags = ("--workers", "1", "--admin-listen", f"unix:{path}")

    def page() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("kiln", timeout=60)
        connection.sock = over_unix(str(path), patient=True)()
        return connection

    with Daemon(state, flags, command=with_descriptors(FEW)) as daemon:
        with Strangers(over_unix(str(path), patient=False), SENT["half"], STRANGERS):
            done = Honest(daemon, page).run()
        assert min(done.values()) >= LEAST, done
        assert len(daemon.log) < LOG_BYTES


def test_connections_to_the_grpc_port_leave_descriptors_for_jobs(daemon: Daemon) -> None:
    with Caller(daemon) as caller:
        assert list(caller.compile(constant(next(_tags))))
        with Strangers(over_tcp(daemon.address), b"PRI * HTTP/2.0", STRANGERS):
            for _ in range(20):
                assert list(caller.compile(constant(next(_tags))))
                assert descriptors_of(daemon) < FEW - 64
    assert "cannot start a job" not in daemon.log
    line = daemon.wait_for_log("too few file descriptors")
    assert json.loads(line)["max_connections"] < 100
