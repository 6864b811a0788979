"""A daemon that is not root: its workers make a user namespace to make the others in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkilnd.engines.child.isolation import namespaces
from wasmkilnd.model import LayerState

from tests.confinement import workers
from tests.confinement.workers import HOSTILE, attempt

USER = 12345
PYTHON = "/usr/bin/python3"


@pytest.fixture
def engine() -> Iterator[Path]:
    """An environment whose interpreter stops being root before it is Python."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    for needed in (PYTHON, str(HOSTILE), namespaces.__file__):
        if subprocess.run(["test", "-r", needed], user=USER, check=False).returncode:
            pytest.skip(f"an ordinary user cannot read {needed} here")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = workers.environment(Path(folder), python=PYTHON)
        python = made / "bin" / "python"
        python.rename(python.with_name("python-itself"))
        python.write_text(
            f"#!{shutil.which('sh')}\n"
            f"exec {sys.executable} -ISc 'import os, sys; os.setgroups([]);"
            f" os.setresgid({USER}, {USER}, {USER}); os.setresuid({USER}, {USER}, {USER});"
            f' os.execv("{python}-itself", ["{python}-itself", *sys.argv[1:]])\' "$@"\n'
        )
        python.chmod(0o755)
        yield made


async def test_an_ordinary_users_jobs_are_confined_all_the_same(engine: Path) -> None:
    async with workers.running(engine) as worker:
        found = worker.isolation
        assert found.holds, found
        assert users_of(worker.pid) == [str(USER)] * 4
        for words in (("read_file", "/etc/passwd"), ("fork",), ("signal_process", os.getpid())):
            assert (await attempt(worker, *words)).refused
        assert (await attempt(worker, "exhaust_threads", 64)).got == 64
        state = {layer.name: layer.state for layer in found.layers}
        if state["namespaces"] is LayerState.ENFORCED:
            assert files_of(worker.pid) == []
            assert state["limits"] is LayerState.ENFORCED
            assert (await attempt(worker, "exhaust_threads", 1000)).refused


async def test_the_probe_sees_an_ordinary_users_holes(engine: Path) -> None:
    (engine / "left-out.json").write_text('["seccomp"]')
    async with workers.running(engine) as worker:
        assert "fork" in worker.isolation.holes


def users_of(pid: int) -> list[str]:
    """Answer a process's real, effective, saved and file system user."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("Uid:\t")[2].split()[:4]


def files_of(pid: int) -> list[Path]:
    """List the root folder as a process sees it."""
    return list(Path(f"/proc/{pid}/root").iterdir())
