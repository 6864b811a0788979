"""Workers of daemons that are not root reach the same confinement in other ways."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines.child import sandbox
from wasmkilnd.model import Isolation, LayerState

from tests.confinement import workers
from tests.confinement.workers import attempt
from tests.e2e import hostile_engine
from tests.e2e.foreign import unused_user
from tests.e2e.processes import status_of

USER = unused_user()
PYTHON = "/usr/bin/python3"
BECOME_ORDINARY = (
    f"import os, sys; os.setgroups([]); os.setresgid({USER}, {USER}, {USER});"
    f" os.setresuid({USER}, {USER}, {USER}); os.execv(sys.argv[1], sys.argv[1:])"
)


@contextmanager
def engine_run_by(*command: str) -> Iterator[Path]:
    """An environment whose interpreter is started by ``command``."""
    if os.geteuid() != 0:
        pytest.skip("only root can become others, and the other tests ran as an ordinary user")
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    nothing = shutil.which("true") or ""
    if subprocess.run([*command, nothing], capture_output=True, check=False).returncode:
        pytest.skip(f"{command[0]} is refused here")
    for needed in (PYTHON, str(hostile_engine.HOSTILE), sandbox.__file__):
        if subprocess.run(["test", "-r", needed], user=USER, check=False).returncode:
            pytest.skip(f"an ordinary user cannot read {needed} here")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = workers.environment(Path(folder), python=PYTHON)
        python = made / "bin" / "python"
        itself = python.rename(python.with_name("python-itself"))
        words = " ".join(f"'{word}'" for word in command)
        python.write_text(f'#!{shutil.which("sh")}\nexec {words} {itself} "$@"\n')
        python.chmod(0o755)
        yield made


async def test_an_ordinary_users_jobs_are_confined_all_the_same() -> None:
    with engine_run_by(sys.executable, "-ISc", BECOME_ORDINARY) as engine:
        async with workers.running(engine) as worker:
            found = worker.isolation
            assert found.holds, found
            assert status_of(worker.pid)["Uid"].split() == [str(USER)] * 4
            for words in (("read_file", "/etc/passwd"), ("fork",), ("signal_process", os.getpid())):
                assert (await attempt(worker, *words)).refused
            assert (await attempt(worker, "exhaust_threads", 64)).got == 64
            if states(found)["namespaces"] is LayerState.ENFORCED:
                assert files_of(worker.pid) == []
                assert states(found)["limits"] is LayerState.ENFORCED
                assert (await attempt(worker, "exhaust_threads", 1000)).refused


async def test_the_probe_sees_an_ordinary_users_holes() -> None:
    with engine_run_by(sys.executable, "-ISc", BECOME_ORDINARY) as engine:
        hostile_engine.at_import(engine, "import without", "without.refuse('seccomp')")
        async with workers.running(engine) as worker:
            assert "fork" in worker.isolation.holes


@pytest.mark.parametrize(
    "command",
    [
        ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all"),
        ("unshare", "--user", "--map-root-user"),
    ],
    ids=["without capabilities", "of a user namespace"],
)
async def test_a_root_who_cannot_become_anybody_says_so(command: tuple[str, ...]) -> None:
    """In containers root has few privileges."""
    with engine_run_by(*command) as engine:
        async with workers.running(engine) as worker:
            found = worker.isolation
            assert found.holds, found
            detail = {layer.name: layer.detail for layer in found.layers}
            assert states(found)["privileges"] is LayerState.PARTIAL
            assert "the user root" in detail["privileges"]
            assert "capabilities" not in detail["privileges"]
            assert states(found)["limits"] is LayerState.PARTIAL
            assert (await attempt(worker, "find")).got


def states(isolation: Isolation) -> dict[str, LayerState]:
    return {layer.name: layer.state for layer in isolation.layers}


def files_of(pid: int) -> list[Path]:
    """List the root folder as a process sees it."""
    return list(Path(f"/proc/{pid}/root").iterdir())
