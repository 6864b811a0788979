"""The lines that strangers can make a daemon log are bounded in length and number."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.test_stalled_log import call

MIB = 2**20
ENGINE = "wasmtime-50.0.1"
LONGEST = 64 * 1024


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = fresh_state(tmp_path_factory.mktemp("state"), engines=(ENGINE,))
    with Daemon(state, ("--workers", "1")) as running:
        yield running


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the log's lines. Raises ValueError for one that is no JSON."""
    return [json.loads(line) for line in daemon.log.splitlines()]


@pytest.mark.parametrize(
    "request_",
    [
        pb.CompileRequest(module=b"\0asm\1\0\0\0", engine="a" * 15 * MIB),
        pb.CompileRequest(module=b"\0asm\1\0\0\0", target="\0" * MIB),
        pb.CompileRequest(module=b"\0asm\1\0\0\0", settings={"k" * MIB: "v" * MIB}),
        pb.CompileRequest(sha256="f" * MIB),
    ],
    ids=["engine", "target", "settings", "sha256"],
)
def test_a_line_does_not_grow_with_what_a_caller_sends(
    daemon: Daemon, request_: pb.CompileRequest
) -> None:
    before = len(daemon.log_lines)
    with Caller(daemon) as caller, pytest.raises(grpc.RpcError):
        list(caller.stub.Compile(request_, timeout=30))
    daemon.wait_for_log('"event": "call"')
    assert max(map(len, daemon.log_lines[before:]), default=0) < LONGEST
    lines(daemon)


def test_calls_without_end_have_a_bounded_number_of_lines(daemon: Daemon) -> None:
    def served() -> list[dict[str, Any]]:
        calls = [line for line in lines(daemon) if line["event"] == "call"]
        return [line for line in calls if line["code"] == "OK"]

    def told() -> int:
        return sum(1 + line.get("left_out", 0) for line in served())

    count, deadline = 0, time.monotonic() + 90
    while count < 300 or (told() == len(served()) and time.monotonic() < deadline):
        count += 100
        call(daemon, 100)
    # The last interval has not ended yet.
    eventually(lambda: told() >= count, "calls without a line", timeout_s=30)
    assert len(served()) < count
    assert (
        daemon.metric("rpcs_total", code="OK", method="/wasmkiln.v1.ModuleService/GetCapabilities")
        >= count
    )


def test_what_native_libraries_print_comes_as_it_is(tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=(ENGINE,))
    with Daemon(state, ("--workers", "1"), {"GRPC_VERBOSITY": "DEBUG"}) as daemon:
        with daemon.client() as client:
            client.capabilities()
        daemon.stop()
        own = [json.loads(line) for line in daemon.log_lines if line.startswith("{")]
        assert {"ready", "call", "stopped"} <= {line["event"] for line in own}
        assert any(".cc:" in line for line in daemon.log_lines if not line.startswith("{"))


def test_a_reload_changes_the_format(tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=(ENGINE,))
    config = tmp_path / "config.toml"
    config.write_text('log_format = "json"\n')
    flags = ("--workers", "1", "--config", str(config))
    with Daemon(state, flags, log_format="") as daemon:
        config.write_text('log_format = "text"\n')
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log("reloaded")
        before = len(daemon.log_lines)
        with daemon.client() as client:
            client.capabilities()
        daemon.wait_for_log("GetCapabilities")
        assert not [line for line in daemon.log_lines[before:] if line.startswith("{")]


def test_a_daemon_that_crashes_says_where(tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=(ENGINE,))
    with Daemon(state, ("--workers", "1")) as daemon:
        os.kill(daemon.pid, signal.SIGSEGV)
        daemon.process.wait(120)
        eventually(lambda: "Fatal Python error" in daemon.log, "no last words")
        eventually(lambda: "most recent call first" in daemon.log, "no traceback")
