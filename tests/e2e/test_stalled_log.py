"""A daemon whose log nobody reads serves, counts what it drops, and ends when it is asked to."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually

ENGINE = "wasmtime-50.0.1"
# Each call is a line, and no line is left out.
FLAGS = ("--workers", "1", "--redis-url", "none", "--log-level", "debug")
LIMIT_S = 120


class Unread(Daemon):
    """A daemon of which standard error is a pipe that nobody reads until ``read`` is set."""

    def __init__(self, state: Path, environ: Mapping[str, str] | None = None) -> None:
        self.read = threading.Event()
        super().__init__(state, FLAGS, environ)

    def _read_log(self) -> None:
        self.read.wait()
        super()._read_log()

    def end(self) -> None:
        self.read.set()
        super().end()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return fresh_state(tmp_path / "state", engines=(ENGINE,))


def call(daemon: Daemon, count: int, request_id: str = "") -> None:
    """Make calls, and wait for the answer of each."""
    metadata = (("x-request-id", request_id),) if request_id else ()
    with Caller(daemon) as caller:
        for _ in range(0, count, 100):
            calls = [
                caller.stub.GetCapabilities.future(
                    pb.GetCapabilitiesRequest(), timeout=LIMIT_S, metadata=metadata
                )
                for _ in range(min(count, 100))
            ]
            for each in calls:
                each.result()


def is_alive(daemon: Daemon) -> bool:
    with urllib.request.urlopen(f"{daemon.admin_url}/healthz", timeout=LIMIT_S) as answer:
        return bool(answer.status == 200)


def drops(daemon: Daemon) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    return [line for line in lines if line["event"] == "log lines dropped"]


@pytest.mark.timeout(600)
def test_a_stalled_reader_learns_how_many_lines_were_dropped(state: Path) -> None:
    with Unread(state) as daemon:
        for _ in range(20):
            call(daemon, 1000)
            if daemon.metric("log_lines_dropped_total"):
                break
        call(daemon, 100)
        assert is_alive(daemon)
        assert daemon.metric("log_lines_dropped_total") >= 100

        daemon.read.set()
        daemon.wait_for_log('"event": "log lines dropped"')
        call(daemon, 1, "after-the-stall")
        daemon.wait_for_log("after-the-stall")
        eventually(
            lambda: (
                sum(line["lines"] for line in drops(daemon))
                == daemon.metric("log_lines_dropped_total")
            ),
            "the log and the metric count differently",
        )
        assert {line["level"] for line in drops(daemon)} == {"error"}
        assert daemon.stop() == 0
        assert json.loads(daemon.log_lines[-1])["event"] == "stopped"


@pytest.mark.timeout(600)
def test_a_daemon_of_which_nobody_ever_reads_the_log_serves_and_ends(state: Path) -> None:
    """Its own lines fill the pipe, and those of native code."""
    with Unread(state, {"GRPC_VERBOSITY": "DEBUG", "GRPC_TRACE": "http,tcp"}) as daemon:
        call(daemon, 1000)
        assert is_alive(daemon)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(LIMIT_S) == 0
