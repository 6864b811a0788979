"""What systemd hears, on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wasmkilnd.lifecycle import systemd
from wasmkilnd.lifecycle.readiness import STUCK_S, Readiness
from wasmkilnd.lifecycle.reload import ReloadResult
from wasmkilnd.lifecycle.running import RunningDaemon, began, running, write
from wasmkilnd.lifecycle.systemd import Service, long_step, notify
from wasmkilnd.model import SWITCHED_OFF, RemoteStatus

NO_REDIS = RemoteStatus("none", up=False, detail=SWITCHED_OFF)


@pytest.mark.parametrize("abstract", [False, True])
def test_what_is_told_stays_within_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    path = f"wasmkiln-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        notify("READY=1", "STATUS=ready; one\nX_FORGED=1")
        assert manager.recv(4096) == b"READY=1\nSTATUS=ready; one"


@pytest.mark.parametrize("address", ["", "relative", "/nothing/listens/here"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1", "STATUS=ready")


def test_a_manager_that_does_not_read_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(10_000):
            notify(f"STATUS={'x' * 200}")


@pytest.mark.parametrize(
    ("limit", "pid", "expected_s"),
    [
        ("60000000", "", 60.0),
        ("60000000", "own", 60.0),
        ("60000000", "1", 0.0),
        ("", "", 0.0),
    ],
)
def test_whose_watchdog_it_is(
    monkeypatch: pytest.MonkeyPatch, limit: str, pid: str, expected_s: float
) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    for name, value in (("WATCHDOG_USEC", limit), ("WATCHDOG_PID", pid)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    assert systemd.watchdog_s() == expected_s


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd is told."""
    said: list[str] = []
    monkeypatch.setattr(systemd, "notify", lambda *state: said.extend(state))
    return said


def test_a_long_step_asks_for_the_time_that_it_may_take(told: list[str]) -> None:
    long_step("installing engines", 60)
    assert told == ["STATUS=installing engines", "EXTEND_TIMEOUT_USEC=60000000"]


@dataclass
class Workers:
    waiting: int = 0
    busy: int = 0
    why_no_worker: str = ""
    awaits_memory: bool = False


@dataclass
class Engine:
    id: str
    pool: Workers


def serving(*engines: Engine) -> Any:
    return SimpleNamespace(registry=SimpleNamespace(served=engines), unserved=())


def test_jobs_that_wait_for_minutes_beside_idle_workers_are_stuck() -> None:
    def gets_on() -> bool:
        return readiness.look(lambda _: None)

    now_s, pool = 0.0, Workers()
    readiness = Readiness(lambda: now_s)
    engines: Any = [Engine("one", Workers()), Engine("two", pool)]
    readiness.started(serving(*engines), lambda: (NO_REDIS, NO_REDIS))
    assert gets_on()
    pool.waiting = 3
    assert gets_on()
    now_s += STUCK_S - 1
    assert gets_on()
    now_s += 2
    assert not gets_on()
    pool.busy = 1  # A long job is no harm.
    assert gets_on()
    now_s += 10 * STUCK_S
    assert gets_on()
    pool.busy, pool.awaits_memory = 0, True  # Nor is one of another engine that has the memory.
    now_s += 10 * STUCK_S
    assert gets_on()
    pool.awaits_memory, pool.why_no_worker = False, "it does not start"
    now_s += 10 * STUCK_S
    assert gets_on()


async def test_the_watchdog_hears_nothing_once_jobs_are_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    looks = [True] * 3 + [False] * 5
    looked = asyncio.Event()

    def look() -> bool:
        if looks:
            return looks.pop(0)
        looked.set()
        return False

    service = Service(tmp_path, lambda: "ready", look)
    await service.begin()
    await asyncio.wait_for(looked.wait(), 30)
    assert told.count("WATCHDOG=1") == 3
    await service.end()


async def test_a_defect_in_a_reload_is_told_and_ends_nothing(tmp_path: Path) -> None:
    async def broken() -> ReloadResult:
        raise ZeroDivisionError

    service = Service(tmp_path, lambda: "ready", lambda: True)
    await service.begin()
    await service.reload(broken)
    [found] = running(tmp_path)
    assert (found.reloads_begun, found.reloads_ended) == (1, 1)
    assert "a defect of the daemon" in found.refused
    await service.end()
    assert running(tmp_path) == []


def test_a_daemon_of_another_release_runs_too(tmp_path: Path) -> None:
    daemon = RunningDaemon(os.getpid(), began(os.getpid()), reloads_ended=1)
    write(tmp_path, daemon)
    [file] = (tmp_path / "daemons").iterdir()
    said = json.loads(file.read_bytes())
    del said["status"]
    file.write_text(json.dumps(said | {"version": "0.6.0"}))
    assert running(tmp_path, tidy=True) == [daemon]


def test_files_of_killed_daemons_go_and_nonsense_is_no_daemon(tmp_path: Path) -> None:
    folder = tmp_path / "daemons"
    folder.mkdir(mode=0o700)
    for number, text in enumerate(("", "[]", "{}", '{"pid": 1, "began": 0}', '{"pid": "x"}')):
        (folder / f"{number}.json").write_text(text)
    write(tmp_path, RunningDaemon(os.getpid(), began(os.getpid()) + 1))
    assert running(tmp_path) == []
    assert len(list(folder.iterdir())) == 6
    assert running(tmp_path, tidy=True) == []
    assert list(folder.iterdir()) == []
