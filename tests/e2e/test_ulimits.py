"""The daemon names each of its own limits that is too low for a job."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.programs import WASMKILND

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


def limited(name: str, limit: int) -> tuple[str, ...]:
    """Return the command of a daemon under a hard limit."""
    return ("prlimit", f"--{name.removeprefix('RLIMIT_').lower()}={limit}:{limit}", WASMKILND)


@pytest.mark.parametrize("name", TOO_LOW)
def test_a_limit_that_is_too_low_is_named(name: str, tmp_path: Path) -> None:
    limit, *words = TOO_LOW[name]
    done = subprocess.run(
        [
            *(*limited(name, limit), "serve", *FLAGS),
            *("--state-dir", str(state_with(tmp_path / "state", ENGINE))),
            *("--listen", "127.0.0.1:0", "--admin-listen", "none"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    last_line = done.stderr.splitlines()[-1]
    for word in ("cannot run jobs", name, *words, "raise the hard limit"):
        assert word in last_line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "limit", "flags"),
    [
        ("RLIMIT_AS", 3 * GIB, ("--compile-memory-bytes", str(GIB))),
        ("RLIMIT_DATA", 3 * GIB, ("--compile-memory-bytes", str(GIB))),
        ("RLIMIT_CPU", 50, ("--compile-cpu-s", "40")),
        ("RLIMIT_STACK", 8 * 2**20, ()),
        ("RLIMIT_NPROC", 100, ()),
    ],
)
def test_a_limit_that_is_high_enough_is_enough(
    name: str, limit: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """This holds for the self-test too, which has limits of its own."""
    state = state_with(tmp_path / "state", ENGINE)
    with (
        Daemon(state, (*FLAGS, *flags), command=limited(name, limit)) as daemon,
        daemon.client() as client,
    ):
        assert client.compile(wasm.adder(1)).bytes


def test_a_reload_does_not_ask_for_more_than_there_is(tmp_path: Path) -> None:
    file = tmp_path / "wasmkilnd.toml"
    file.write_text("compile_memory_bytes = '1GiB'\n")
    state = state_with(tmp_path / "state", ENGINE)
    flags = (*FLAGS[:4], "--config", str(file))
    with (
        Daemon(state, flags, command=limited("RLIMIT_AS", 3 * GIB)) as daemon,
        daemon.client(max_attempts=1) as client,
    ):
        file.write_text("compile_memory_bytes = '4GiB'\n")
        daemon.process.send_signal(1)
        assert "RLIMIT_AS is 3,221,225,472" in daemon.wait_for_log("cannot reload")
        assert client.compile(wasm.adder(1)).bytes
