"""The log of a daemon: its lines are bounded, and nobody has to read them for it to serve."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import Caller
from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually

MIB = 2**20
LONGEST = 64 * 1024


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the log's lines. Raises ValueError for one that is no JSON."""
    return [json.loads(line) for line in daemon.log.splitlines()]


def test_a_line_does_not_grow_with_what_a_caller_sends(lean_state_dir: Path) -> None:
    module = b"\0asm\1\0\0\0"
    large = (
        pb.CompileRequest(module=module, engine="a" * 15 * MIB),
        pb.CompileRequest(module=module, target="\0" * MIB),
        pb.CompileRequest(module=module, settings={"k" * MIB: "v" * MIB}),
        pb.CompileRequest(sha256="f" * MIB),
    )
    with Daemon(lean_state_dir, ("--workers", "1")) as daemon, Caller(daemon) as caller:
        for request in large:
            with pytest.raises(grpc.RpcError):
                list(caller.stub.Compile(request, timeout=30))

        def told() -> bool:
            return len([one for one in lines(daemon) if one["event"] == "call"]) == len(large)

        eventually(told, "a call has no line")
        assert max(map(len, daemon.log_lines)) < LONGEST


def test_what_native_libraries_print_comes_as_it_is(lean_state_dir: Path) -> None:
    # The dynamic linker prints. gRPC's core does not in each version.
    with Daemon(lean_state_dir, ("--workers", "1"), {"LD_DEBUG": "statistics"}) as daemon:
        with daemon.client() as client:
            client.capabilities()
        daemon.stop()
        own = [json.loads(line) for line in daemon.log_lines if line.startswith("{")]
        assert {"ready", "call", "stopped"} <= {line["event"] for line in own}
        others = [line for line in daemon.log_lines if not line.startswith("{")]
        assert any("runtime linker statistics" in line for line in others)


def test_a_daemon_that_crashes_says_where(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, ("--workers", "1")) as daemon:
        os.kill(daemon.pid, signal.SIGSEGV)
        daemon.process.wait(120)
        eventually(lambda: "Fatal Python error" in daemon.log, "no last words")
        eventually(lambda: "most recent call first" in daemon.log, "no traceback")


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
    return [line for line in lines(daemon) if line["event"] == "log lines dropped"]


@pytest.mark.timeout(600)
def test_a_stalled_reader_learns_how_many_lines_were_dropped(lean_state_dir: Path) -> None:
    with Unread(lean_state_dir) as daemon:
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
def test_a_daemon_of_which_nobody_ever_reads_the_log_serves_and_ends(lean_state_dir: Path) -> None:
    """Its own lines fill the pipe, and those of native code."""
    with Unread(lean_state_dir, {"LD_DEBUG": "statistics"}) as daemon:
        call(daemon, 1000)
        assert is_alive(daemon)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(LIMIT_S) == 0
