"""The exit codes of `wasmkiln`, which scripts decide by."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import wasm
from tests.e2e.bearers import add_token
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILN, Installed

# Blocks that keep wasmer busy for some seconds. The daemon finishes what its callers have left, so
# a module that keeps it busy to its limit would keep its workers from the tests of other files.
SOME_SECONDS = 40_000

POLICY = """
[[rule]]
identity = "token:small"
quota = "small"

[quota.small]
compiles_per_minute = 1
"""


@pytest.fixture(scope="module")
def guarded(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that asks who calls, with tokens in files of its state directory."""
    state = state_with(tmp_path_factory.mktemp("codes") / "state", ENGINE)
    for name, role in (("small", "compile"), ("reader", "read")):
        (state / name).write_text(add_token(state, name, role))
        (state / name).chmod(0o600)
    (state / "policy.toml").write_text(POLICY)
    flags = ["--redis-url", "none", "--workers", "1", "--policy-file", str(state / "policy.toml")]
    with Daemon(state, flags) as daemon:
        yield daemon


def file_of(folder: Path, module: bytes) -> Path:
    path = folder / f"{wasm.digest(module)}.wasm"
    path.write_bytes(module)
    return path


def command(daemon: Daemon, *words: object, token: str = "") -> list[str]:
    who = ["--token-file", str(daemon.state_dir / token)] if token else []
    return [WASMKILN, "--address", daemon.address, *who, *map(str, words)]


def code_of(argv: list[str]) -> tuple[int, str]:
    """Run a command; return its exit code and its last line on standard error."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
    done = subprocess.run(
        argv, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_0_is_done(daemon: Daemon, tmp_path: Path) -> None:
    assert code_of(command(daemon, "compile", file_of(tmp_path, wasm.adder(1)))) == (0, "")


def test_1_is_refused(daemon: Daemon) -> None:
    code, said = code_of(command(daemon, "compile", "/etc/passwd"))
    assert code == 1
    assert said.startswith("error: /etc/passwd: these bytes are not a WebAssembly binary")


def test_2_is_wrong_usage(daemon: Daemon) -> None:
    assert code_of(command(daemon, "compile"))[0] == 2
    assert code_of(command(daemon, "no-such-command"))[0] == 2


def test_3_is_no_daemon(tmp_path: Path) -> None:
    module = file_of(tmp_path, wasm.adder(1))
    code, said = code_of([WASMKILN, "--address", "127.0.0.1:1", "compile", str(module)])
    assert code == 3
    assert "no daemon answers at 127.0.0.1:1" in said


def test_4_is_no_answer_in_time(daemon: Daemon, tmp_path: Path) -> None:
    slow = file_of(tmp_path, wasm.nested_blocks(SOME_SECONDS))
    assert code_of(command(daemon, "--timeout", "0.5", "compile", slow))[0] == 4


def test_5_is_not_now(guarded: Daemon, tmp_path: Path) -> None:
    codes = []
    for tag in (1001, 1002):
        module = file_of(tmp_path, wasm.adder(tag))
        # Less than the quota's minute, and enough for a job that has to wait.
        argv = command(guarded, "--timeout", "45", "compile", module, token="small")
        codes.append(code_of(argv))
    assert [code for code, _ in codes] == [0, 5], codes
    assert "quota" in codes[1][1]


def test_6_is_not_let_in(guarded: Daemon, tmp_path: Path) -> None:
    module = file_of(tmp_path, wasm.adder(6))
    assert code_of(command(guarded, "compile", module))[0] == 6
    code, said = code_of(command(guarded, "compile", module, token="reader"))
    assert code == 6
    assert "compile" in said


def test_130_is_interrupted(daemon: Daemon, tmp_path: Path) -> None:
    slow = file_of(tmp_path, wasm.nested_blocks(SOME_SECONDS, tag=1))
    process = subprocess.Popen(
        command(daemon, "compile", slow), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    eventually(lambda: daemon.metric("calls") == 1, "it does not call")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
