"""The daemon and its commands use no file that another user could change, and say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install.interpreters import PythonRange, find, probe
from wasmkilnd.engines.install.vetting import check_engine, check_interpreter
from wasmkilnd.ownership import NotOurs

from tests.confinement.workers import environment
from tests.e2e.daemon import Daemon, fresh_state, state_with
from tests.e2e.programs import WASMKILND

OTHERS = 54321
SERVED, LEFT_OUT = "wasmtime-50.0.1", "wasmtime-0.0.1"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

COMMANDS = [
    ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none"],
    ["engine", "list"],
    ["engine", "install", "wasmtime"],
    ["engine", "remove", SERVED],
    ["keys", "list"],
    ["cache", "ls"],
]


def wasmkilnd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WASMKILND, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that leaves a trace when it is run."""
    prefix = tmp_path / "python"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib" / "python3.13").mkdir(parents=True)
    (prefix / "lib" / "python3.13" / "os.py").write_text("")
    executable = prefix / "bin" / "python3.13"
    executable.write_text(f'#!/bin/sh\ntouch {tmp_path}/was-run\nexec {sys.executable} "$@"\n')
    executable.chmod(0o755)
    return executable


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: "-".join(words[:2]))
@pytest.mark.parametrize("foreign", ["inside", "mode", "above"])
def test_a_state_directory_that_others_could_change_is_not_used(
    tmp_path: Path, command: list[str], foreign: str
) -> None:
    state = fresh_state(tmp_path / "above" / "state", own_keys=True)
    if foreign == "inside":
        # Of a state directory that is all somebody else's, see test_as_owner.py.
        (state / "engines").unlink()
        for folder in ("engines", "keys", "redis"):
            (state / folder).mkdir(mode=0o700)
            os.chown(state / folder, OTHERS, -1)
    elif foreign == "mode":
        state.chmod(0o777)
    else:
        os.chown(state.parent, OTHERS, -1)
    before = sorted(path.name for path in state.iterdir())
    done = wasmkilnd(*command, "--state-dir", str(state))
    assert done.returncode == 1, done.stderr
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
        assert f"{package} belongs to user {OTHERS}" in left_out.cause
    listed = wasmkilnd("engine", "list", "--state-dir", str(state))
    assert listed.returncode == 0
    assert LEFT_OUT in listed.stdout
    assert f"{LEFT_OUT} is not served: cannot use" in listed.stderr
    assert not (tmp_path / "was-run").exists()
    # What the message says helps.
    remedy = left_out.cause.split("`")[1]
    subprocess.run(remedy, shell=True, check=True)
    check_engine(engine, engine / "bin" / "python")


@pytest.mark.parametrize("what", ["", "..", "../../lib", "../../lib/python3.13/os.py"])
def test_an_interpreter_that_others_could_change_is_not_run(
    tmp_path: Path, python: Path, what: str
) -> None:
    foreign = (python / what).resolve()
    if what == "..":
        foreign = python.parent
    elif what:
        foreign = Path(os.path.normpath(python / what))
    check_interpreter(python)
    os.chown(foreign, OTHERS, -1)
    with pytest.raises(NotOurs, match=f"user {OTHERS}"):
        check_interpreter(python)
    with pytest.raises(NotOurs):
        probe(python)
    words = ["engine", "install", "wasmtime", "--python", str(python)]
    done = wasmkilnd(*words, "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1
    assert f"belongs to user {OTHERS}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "was-run").exists()


def test_one_that_others_could_change_is_passed_over(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(python, OTHERS, -1)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    found = find(PythonRange((3, 13), (3, 13)))
    assert found
    assert found.path != python
    assert not (tmp_path / "was-run").exists()


def test_the_interpreters_of_a_users_home_are_fine_for_that_user(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (python.parents[1], *python.parents[1].rglob("*")):
        os.chown(path, OTHERS, OTHERS)
    monkeypatch.setattr(os, "geteuid", lambda: OTHERS)
    check_interpreter(python)


def test_an_installed_engine_passes_until_one_file_of_it_is_open(tmp_path: Path) -> None:
    """A copy of a real one."""
    source = state_with(tmp_path / "source", SERVED) / "engines" / SERVED
    copy = tmp_path / "state" / "engines" / SERVED
    shutil.copytree(source.resolve(), copy, symlinks=True)
    check_engine(copy, copy / "bin" / "python")
    (copy / "pyvenv.cfg").chmod(0o666)
    with pytest.raises(NotOurs, match=r"other users may write to .*pyvenv\.cfg"):
        check_engine(copy, copy / "bin" / "python")
