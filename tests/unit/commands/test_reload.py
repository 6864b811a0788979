"""`wasmkilnd reload` and a daemon that does not answer, or is gone.

What a daemon that answers does is in tests/e2e/test_service.py.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from wasmkilnd.cli import command
from wasmkilnd.commands import reload
from wasmkilnd.errors import CannotUse
from wasmkilnd.lifecycle.running import RunningDaemon, began


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says that it serves from a state directory, and does nothing at SIGHUP."""
    words = ["sh", "-c", "trap '' HUP; echo ready; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        (tmp_path / "daemons").mkdir(mode=0o700)
        daemon = asdict(RunningDaemon(running.pid, began(running.pid)))
        (tmp_path / "daemons" / f"{running.pid}.json").write_text(json.dumps(daemon))
        yield running
        running.kill()


def refusal(state: Path) -> str:
    words = ["reload", "--state-dir", str(state)]
    result = CliRunner().invoke(command, words, standalone_mode=False)
    assert isinstance(result.exception, CannotUse)
    return str(result.exception)


def test_one_that_hangs_is_not_called_reloaded(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_TIMEOUT_S", 0.3)
    began_s = time.monotonic()
    told = refusal(tmp_path)
    assert f"whether the daemon with the process id {process.pid} was reloaded" in told
    assert "has not finished within 0.3 s" in told
    assert time.monotonic() - began_s < 10


def test_one_that_ends_meanwhile_is_told_of(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: process.kill())
    told = refusal(tmp_path)
    assert told.endswith(f"the daemon with the process id {process.pid}: it has ended")


def test_nothing_is_said_of_a_reload_where_no_daemon_runs(
    tmp_path: Path, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    reload.take_in(tmp_path / "elsewhere", "serves it", and_reload=False)
    assert capsys.readouterr().err == ""
    reload.take_in(tmp_path, "serves it", and_reload=False)
    assert f"(process {process.pid}) serves it when you reload it" in capsys.readouterr().err
