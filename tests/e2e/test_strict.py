"""What a machine refuses a daemon: limits and layers of isolation, each named at the start."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.hostile_engine import HOSTILE
from tests.e2e.programs import WASMKILND, run

GIB = 2**30
FLAGS = (
    *("--redis-url", "none", "--workers", "1"),
    *("--compile-memory-bytes", str(4 * GIB), "--compile-cpu-s", "100"),
)
# What is too low, and what the message says beside the name.
TOO_LOW = {
    "RLIMIT_AS": (3 * GIB, "3,221,225,472", "4,294,967,296", "WASMKILN_COMPILE_MEMORY_BYTES"),
    "RLIMIT_DATA": (3 * GIB, "3,221,225,472", "4,294,967,296", "WASMKILN_COMPILE_MEMORY_BYTES"),
    "RLIMIT_CPU": (90, "90", "101", "WASMKILN_COMPILE_CPU_S"),
    "RLIMIT_STACK": (2**20, "1,048,576", "8,388,608", "LimitSTACK="),
    "RLIMIT_NPROC": (2, "2", "a job needs", "LimitNPROC="),
    "RLIMIT_NOFILE": (12, "12", "16", "LimitNOFILE="),
}
# Which layer a machine does not have that refuses a call.
CALLS = {"landlock_restrict_self": "landlock", "pivot_root": "root", "seccomp": "seccomp"}


def limited(**limits: int) -> tuple[str, ...]:
    """Return the command of a daemon under hard limits."""
    return ("prlimit", *(f"--{name}={limit}:{limit}" for name, limit in limits.items()), WASMKILND)


def without(call: str) -> tuple[str, ...]:
    """Return the command of a daemon on a machine that refuses a system call."""
    return (sys.executable, str(HOSTILE / "without.py"), call, WASMKILND)


def refused(tmp_path: Path, command: Sequence[str], *flags: str) -> str:
    """Start a daemon that does not serve; return the last line that it writes."""
    state = state_with(tmp_path / "state", ENGINE)
    places = ("--state-dir", state, "--listen", "127.0.0.1:0", "--admin-listen", "none")
    done = run(*command, "serve", *FLAGS, *flags, *places)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "is ready" not in done.stdout
    return done.stderr.splitlines()[-1]


@contextmanager
def served(
    tmp_path: Path, command: Sequence[str] = (WASMKILND,), *flags: str
) -> Iterator[tuple[Daemon, Client]]:
    """Run a daemon, which has to compile."""
    state = state_with(tmp_path / "state", ENGINE)
    with (
        Daemon(state, (*FLAGS, *flags), command=command) as daemon,
        daemon.client(max_attempts=1) as client,
    ):
        assert client.compile(wasm.adder(1)).bytes
        yield daemon, client


@pytest.mark.parametrize("name", TOO_LOW)
def test_a_limit_that_is_too_low_is_named(name: str, tmp_path: Path) -> None:
    limit, *words = TOO_LOW[name]
    told = refused(tmp_path, limited(**{name.removeprefix("RLIMIT_").lower(): limit}))
    for word in ("cannot run jobs", name, *words, "raise the hard limit"):
        assert word in told


def test_limits_that_are_high_enough_are_enough_until_a_reload_asks_for_more(
    tmp_path: Path,
) -> None:
    """This holds for the self-test too, which has limits of its own."""
    file = tmp_path / "wasmkilnd.toml"
    file.write_text("compile_memory_bytes = '1GiB'\ncompile_cpu_s = 40\n")
    high = {"as": 3 * GIB, "data": 3 * GIB, "cpu": 50, "stack": 8 * 2**20, "nproc": 100}
    flags = (*FLAGS[:4], "--config", str(file))
    with (
        Daemon(state_with(tmp_path / "state", ENGINE), flags, command=limited(**high)) as daemon,
        daemon.client(max_attempts=1) as client,
    ):
        assert client.compile(wasm.adder(1)).bytes
        file.write_text("compile_memory_bytes = '4GiB'\ncompile_cpu_s = 40\n")
        daemon.process.send_signal(1)
        assert "RLIMIT_AS is 3,221,225,472" in daemon.wait_for_log("cannot reload")
        assert client.compile(wasm.adder(2)).bytes


def test_a_machine_that_has_all_layers_is_served_strictly(tmp_path: Path) -> None:
    with served(tmp_path, (WASMKILND,), "--isolation", "strict") as (_, client):
        assert client.capabilities().isolation_required


@pytest.mark.parametrize("call", CALLS)
def test_without_a_layer_a_strict_daemon_does_not_start(call: str, tmp_path: Path) -> None:
    told = refused(tmp_path, without(call), "--isolation", "strict")
    assert f"cannot serve {ENGINE} (isolation = strict)" in told
    assert CALLS[call] in told
    assert "WASMKILN_ISOLATION=" in told


@pytest.mark.parametrize("call", ["landlock_restrict_self", "pivot_root"])
def test_required_serves_what_strict_does_not(call: str, tmp_path: Path) -> None:
    with served(tmp_path, without(call)) as (daemon, _):
        assert CALLS[call] in daemon.wait_for_log("a layer of isolation is not in force")


def test_a_service_manager_may_allow_fewer_namespaces(tmp_path: Path) -> None:
    """systemd does so with RestrictNamespaces=user mnt net ipc pid."""
    uts_and_cgroup = "unshare:0x06000000"
    with served(tmp_path, without(uts_and_cgroup)) as (_, client):
        [engine] = client.capabilities().engines
        layers = {layer.name: layer for layer in engine.isolation.layers}
        assert engine.isolation.holds
        assert layers["namespaces"].state == pb.IsolationLayer.STATE_ENFORCED
        assert layers["root"].state == pb.IsolationLayer.STATE_ENFORCED
