"""A daemon as a service of systemd: what it tells the manager and the journal, and its reloads."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkiln import Client

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, fresh_state
from tests.e2e.processes import eventually, send
from tests.e2e.programs import WASMKILND, Installed, run, without_settings

LINE = re.compile(r"<([0-7])>(\{.*\})")


class Managed:
    """A daemon that a service manager started: one stream for its output, and a socket."""

    def __init__(self, folder: Path) -> None:
        self.state = fresh_state(folder / "state", engines=ONE_ENGINE)
        self.config = folder / "wasmkilnd.toml"
        self.config.write_text("")
        self.told: list[str] = []
        self.lines: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))
        theirs, self._journal = socket.socketpair()
        stream = os.fstat(theirs.fileno())
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(WASMKILND, "serve", "--config", str(self.config)),
                    *("--state-dir", str(self.state), "--listen", f"unix:{folder / 'kiln.sock'}"),
                    *("--admin-listen", "none", "--redis-url", "none", "--workers", "1"),
                ],
                env={
                    **without_settings(),
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    "WATCHDOG_USEC": "1500000",
                    "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}",
                },
                stdin=subprocess.DEVNULL,
                stdout=theirs.fileno(),
                stderr=theirs.fileno(),
            )
        self.address = f"unix:{folder / 'kiln.sock'}"
        self._readers = [threading.Thread(target=each) for each in (self._hear, self._read)]
        for reader in self._readers:
            reader.start()
        eventually(lambda: self.has_told("READY=1"), "it does not become ready", 120)

    def has_told(self, words: str, since: int = 0) -> bool:
        return any(words in each for each in self.told[since:])

    def reload(self) -> str:
        """Run the command, which has to succeed; return what it says."""
        code, said = reload(self.state)
        assert code == 0, said
        return said

    def end(self) -> None:
        send(signal.SIGCONT, self.process.pid)
        self.process.terminate()
        self.process.wait(120)
        self._notify.shutdown(socket.SHUT_RD)
        for reader in self._readers:
            reader.join(10)
        self._notify.close()
        self._journal.close()

    def _hear(self) -> None:
        while message := self._notify.recv(65536).decode():
            self.told.append(message)

    def _read(self) -> None:
        with self._journal.makefile() as stream:
            self.lines.extend(line.rstrip("\n") for line in stream)


def reload(state: Path) -> tuple[int, str]:
    """Run the command; return its exit code, and what it says."""
    done = run(WASMKILND, "reload", "--state-dir", state)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def managed(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    managed = Managed(tmp_path_factory.mktemp("service"))
    yield managed
    managed.end()
    # The journal has had nothing but lines with a priority, to the end.
    assert managed.lines
    assert [line for line in managed.lines if not LINE.fullmatch(line)] == []
    # While it drains, it may tell how it is.
    assert managed.has_told("STOPPING=1\n")
    assert list((managed.state / "daemons").iterdir()) == []


def test_what_systemd_hears(managed: Managed) -> None:
    first = next(each for each in managed.told if "READY=1" in each)
    assert first == "READY=1\nSTATUS=ready; 1 engine, 0 entries in memory, 0.0% hits, 0 queued"
    with Client(managed.address) as client:
        client.compile(wasm.adder(1))
        client.compile(wasm.adder(1))
    words = "STATUS=ready; 1 engine, 2 entries in memory, 50.0% hits"
    eventually(lambda: managed.has_told(words), "no new status")
    # The watchdog hears from a loop that runs.
    heard = managed.told.count("WATCHDOG=1")
    eventually(lambda: managed.told.count("WATCHDOG=1") > heard + 2, "the watchdog hears nothing")


def test_a_reload_says_how_it_ended(managed: Managed) -> None:
    before = len(managed.told)
    managed.config.write_text("compile_timeout_s = 20\nmax_connections = 7\n")
    said = managed.reload()
    assert f"the daemon with the process id {managed.process.pid} is reloaded: ready" in said
    assert "max_connections has changed, and needs a restart" in said
    eventually(lambda: managed.has_told("READY=1", before), "the reload does not end")
    told = [each.partition("=")[0] for each in managed.told[before:]]
    assert [each for each in told if each in ("RELOADING", "READY")] == ["RELOADING", "READY"]


def test_a_failed_reload_is_seen_by_whoever_reloaded(managed: Managed) -> None:
    managed.config.write_text("compile_timeout_s = 'soon'\n")
    before = len(managed.told)
    # As the unit's ExecReload, which has the service's settings: the directory is all it needs.
    settings = {"CONFIG": managed.config, "STATE_DIR": managed.state}
    environ = {f"WASMKILN_{name}": str(value) for name, value in settings.items()}
    done = run(WASMKILND, "reload", **environ)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    words = "error: cannot reload the daemon with the process id .* goes on with what it had: .*"
    assert re.match(f"{words}compile_timeout_s", line), line
    # systemd shows it too, and so does the journal.
    words = "STATUS=the last reload failed: "
    eventually(lambda: managed.has_told(words, before), "systemd does not hear of it")
    words = "cannot reload: what cannot be used stays as it was"
    eventually(lambda: any(words in each for each in managed.lines), "it is not logged")
    assert all(each.startswith("<3>") for each in managed.lines if words in each)
    managed.config.write_text("compile_timeout_s = 20\n")
    before = len(managed.told)
    managed.reload()
    words = "READY=1\nSTATUS=ready"
    eventually(lambda: managed.has_told(words, before), "the status stays as it was")


def test_no_daemon_is_no_success(managed: Managed, tmp_path: Path) -> None:
    """Nor is one that was killed, and left its file."""
    left = tmp_path / "daemons"
    left.mkdir(mode=0o700)
    [file] = (managed.state / "daemons").iterdir()
    found = json.loads(file.read_text()) | {"began": 1}
    (left / file.name).write_text(json.dumps(found))
    code, said = reload(tmp_path)
    assert code == 1
    assert "no daemon serves from" in said
