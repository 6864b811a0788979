"""``isolation = "strict"``: the daemon does not start if one of three layers is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.hostile_engine import HOSTILE
from tests.e2e.programs import WASMKILND

# Which layer a machine does not have that refuses a call.
CALLS = {"landlock_restrict_self": "landlock", "pivot_root": "root", "seccomp": "seccomp"}
FLAGS = ("--redis-url", "none", "--workers", "1")


def without(call: str) -> tuple[str, ...]:
    """Return the command of a daemon on a machine that refuses a system call."""
    return (sys.executable, str(HOSTILE / "without.py"), call, WASMKILND)


def test_a_machine_that_has_all_is_served(tmp_path: Path) -> None:
    flags = (*FLAGS, "--isolation", "strict")
    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon, daemon.client() as client:
        assert client.compile(wasm.adder(1)).bytes
        assert client.capabilities().isolation_required


@pytest.mark.parametrize("call", CALLS)
def test_without_a_layer_the_daemon_does_not_start(call: str, tmp_path: Path) -> None:
    layer = CALLS[call]
    done = subprocess.run(
        [
            *(*without(call), "serve", "--isolation", "strict", *FLAGS),
            *("--state-dir", str(state_with(tmp_path / "state", ENGINE))),
            *("--listen", "127.0.0.1:0", "--admin-listen", "none"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert f"cannot serve {ENGINE} (isolation = strict)" in last_line
    assert layer in last_line
    assert "WASMKILN_ISOLATION=" in last_line
    assert "is ready" not in done.stdout


def test_a_service_manager_may_allow_fewer_namespaces(tmp_path: Path) -> None:
    """systemd does so with RestrictNamespaces=user mnt net ipc pid."""
    uts_and_cgroup = "unshare:0x06000000"
    with (
        Daemon(
            state_with(tmp_path / "state", ENGINE),
            FLAGS,
            command=without(uts_and_cgroup),
        ) as daemon,
        daemon.client() as client,
    ):
        assert client.compile(wasm.adder(1)).bytes
        [engine] = client.capabilities().engines
        layers = {layer.name: layer for layer in engine.isolation.layers}
        assert engine.isolation.holds
        assert layers["namespaces"].state == pb.IsolationLayer.STATE_ENFORCED
        assert layers["root"].state == pb.IsolationLayer.STATE_ENFORCED


@pytest.mark.parametrize("call", ["landlock_restrict_self", "pivot_root"])
def test_required_serves_what_strict_does_not(call: str, tmp_path: Path) -> None:
    with (
        Daemon(state_with(tmp_path / "state", ENGINE), FLAGS, command=without(call)) as daemon,
        daemon.client() as client,
    ):
        assert client.compile(wasm.adder(1)).bytes
        assert CALLS[call] in daemon.wait_for_log("a layer of isolation is not in force")
