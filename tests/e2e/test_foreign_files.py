"""The daemon and its commands use no file that another user could change, and say so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon, fresh_state, state_with
from tests.e2e.hostile_engine import environment
from tests.e2e.programs import WASMKILND, Installed, run, why_not_as

OTHERS = 54321
SERVED, LEFT_OUT = "wasmtime-50.0.1", "wasmtime-0.0.1"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0"}
COMMANDS = [
    ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none"],
    ["engine", "ls"],
    ["engine", "install", "wasmtime"],
    ["engine", "remove", SERVED],
    ["keys", "ls"],
    ["cache", "ls"],
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users reach: pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="wasmkiln-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def python(folder: Path) -> Path:
    """A Python that leaves a trace when it is run."""
    return traced_python(folder, "python3.13", sys.executable)


def traced_python(folder: Path, name: str, itself: str) -> Path:
    """Make a Python of that name, which runs ``itself`` and leaves a trace."""
    prefix = folder / "python"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib" / name).mkdir(parents=True)
    (prefix / "lib" / name / "os.py").write_text("")
    executable = prefix / "bin" / name
    executable.write_text(f'#!/bin/sh\ntouch {prefix}/was-run\nexec {itself} "$@"\n')
    executable.chmod(0o755)
    return executable


def was_run(python: Path) -> bool:
    """Return whether a Python has left its trace; remove it."""
    trace = python.parents[1] / "was-run"
    found = trace.exists()
    trace.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("foreign", ["inside", "mode"])
def test_a_state_directory_that_others_could_change_is_not_used(
    tmp_path: Path, foreign: str
) -> None:
    state = fresh_state(tmp_path / "above" / "state", own_keys=True)
    if foreign == "inside":
        # Of a state directory that is all somebody else's, see test_as_root.py.
        (state / "engines").unlink()
        for folder in ("engines", "keys", "redis"):
            (state / folder).mkdir(mode=0o700)
            os.chown(state / folder, OTHERS, -1)
    else:
        state.chmod(0o777)
    before = sorted(path.name for path in state.iterdir())
    for command in COMMANDS:
        done = run(WASMKILND, *command, "--state-dir", str(state))
        assert done.returncode == 1, (command, done.stderr)
        assert f"cannot use {state}" in done.stderr
        assert "who could change what runs here" in done.stderr or "chmod" in done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(path.name for path in state.iterdir()) == before


def test_an_engine_that_others_could_change_is_left_out_and_never_run(
    tmp_path: Path, python: Path
) -> None:
    state = state_with(tmp_path / "state", SERVED)
    engine = environment(state / "engines")
    (engine / "bin" / "python").unlink()
    (engine / "bin" / "python").symlink_to(python)
    package = next((engine / "lib").glob("*/site-packages/hostile.pth"))
    os.chown(package, OTHERS, -1)
    with Daemon(state) as daemon, daemon.client() as client:
        capabilities = client.capabilities()
        assert [one.engine.id for one in capabilities.engines] == [SERVED]
        [left_out] = capabilities.unserved_engines
        assert left_out.id == LEFT_OUT
        assert left_out.cause == "the log of the daemon says why"
        daemon.wait_for_log(f"{package} belongs to user {OTHERS}")
    listed = run(WASMKILND, "engine", "ls", "--state-dir", str(state))
    assert listed.returncode == 0
    assert LEFT_OUT in listed.stdout
    assert f"{LEFT_OUT} is not served: cannot use" in listed.stderr
    assert not was_run(python)
    # What the message says helps.
    remedy = listed.stderr.split("`")[1]
    subprocess.run(remedy, shell=True, check=True)
    assert run(WASMKILND, "engine", "ls", "--state-dir", str(state)).stderr == ""
    (engine / "pyvenv.cfg").chmod(0o666)
    listed = run(WASMKILND, "engine", "ls", "--state-dir", str(state))
    assert "other users may write to " in listed.stderr
    assert "pyvenv.cfg" in listed.stderr


def test_an_interpreter_is_run_unless_others_could_change_it(tmp_path: Path, python: Path) -> None:
    words = ["engine", "install", "wasmtime", "--python", str(python)]
    prefix = python.parents[1]
    library = prefix / "lib" / "python3.13" / "os.py"
    for foreign in (None, python, python.parent, library.parents[1], library):
        if foreign:
            os.chown(foreign, OTHERS, -1)
        done = run(WASMKILND, *words, "--state-dir", str(tmp_path / "state"), **NO_INDEX)
        assert (f"belongs to user {OTHERS}" in done.stderr) == (foreign is not None), done.stderr
        assert was_run(python) == (foreign is None), foreign
        if foreign:
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            os.chown(foreign, 0, -1)


def test_one_that_others_could_change_is_passed_over(
    engines: Installed, folder: Path, tmp_path: Path
) -> None:
    """The first on PATH, of a version that the daemon's own Python has not."""
    [wasmer] = [engine for engine in engines if engine.name == "wasmer"]
    itself = wasmer.interpreter.resolve()
    python = traced_python(folder, itself.name, str(itself))
    path = f"{python.parent}:{itself.parent}:{os.environ['PATH']}"
    words = ["engine", "install", "wasmer", "--state-dir", str(tmp_path / "state")]
    run(WASMKILND, *words, **NO_INDEX, PATH=path)
    assert was_run(python)
    os.chown(python, OTHERS, -1)
    done = run(WASMKILND, *words, **NO_INDEX, PATH=path)
    assert "wasmer: using CPython 3." in done.stderr
    assert str(python) not in done.stderr
    assert not was_run(python)


def test_the_interpreters_of_a_users_home_are_fine_for_that_user(
    folder: Path, python: Path
) -> None:
    become = ("setpriv", f"--reuid={OTHERS}", f"--regid={OTHERS}", "--clear-groups")
    if why := why_not_as(OTHERS):
        pytest.skip(f"another user cannot run the daemon here: {why}")
    home, state = python.parents[1], folder / "state"
    state.mkdir(mode=0o700)
    for path in (state, home, *home.rglob("*")):
        os.chown(path, OTHERS, OTHERS)
    words = ["engine", "install", "wasmtime", "--python", str(python), "--state-dir", str(state)]
    done = run(*become, WASMKILND, *words, **NO_INDEX)
    assert "belongs to user" not in done.stderr
    assert was_run(python), done.stderr
    # It is not root's, who could be made to run anything.
    words[-1] = str(folder / "roots")
    assert f"belongs to user {OTHERS}" in run(WASMKILND, *words, **NO_INDEX).stderr
