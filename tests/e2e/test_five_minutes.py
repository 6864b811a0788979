"""What a small team does first works as the page says, command by command, from the docs alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.e2e.console import Command, Shell, same, sessions
from tests.e2e.daemon import fresh_state
from tests.e2e.programs import ROOT, Installed, search_path

PAGE = ROOT / "docs" / "start" / "secure.md"
_SOON_S = 30.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def check(shell: Shell, command: Command, within_s: float = 0) -> None:
    """Run a command, again until ``within_s`` have passed, until it prints what the page says."""
    until = time.monotonic() + within_s
    while not same(printed := shell.run(command.text), command.printed):
        assert time.monotonic() < until, f"$ {command.text}\n{printed}\n--- not\n{command.printed}"
        time.sleep(0.1)


class Served:
    """The command that serves, in a terminal of its own."""

    def __init__(self, shell: Shell, command: str, folder: Path, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", shell.script(command)],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        self._ready = threading.Event()
        assert self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()
        self._ready.wait(180)

    def _read(self, output: IO[str]) -> None:
        for line in output:
            # What it logs is on standard error, and not on the page.
            if not line.startswith(("{", "20")):
                self.printed += line
            if line.startswith("  try "):
                self._ready.set()
        self._ready.set()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()
        return code


def test_one_daemon_tls_and_three_tokens(engines: Installed, tmp_path: Path) -> None:
    grpc, http = free_ports(2)
    text = PAGE.read_text().replace("50051", str(grpc)).replace("9464", str(http))
    [first, second, later] = sessions(text)
    assert first[-1].text.startswith("wasmkilnd serve ")

    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
    state = fresh_state(tmp_path / "state", own_keys=True, engines=("wasmtime-50.0.1",))
    environ = {
        **inherited,
        "PATH": search_path(),
        "WASMKILN_STATE_DIR": str(state),
    }
    listening = {
        "WASMKILN_LISTEN": f"127.0.0.1:{grpc}",
        "WASMKILN_ADMIN_LISTEN": f"127.0.0.1:{http}",
        "WASMKILN_LOG_FORMAT": "text",  # With it, the banner is printed without a terminal too.
    }
    folder = tmp_path / "folder"
    folder.mkdir()

    terminal, other = Shell(folder, environ), Shell(folder, environ)
    for command in first[:-1]:
        check(terminal, command)
    served = Served(terminal, first[-1].text, folder, {**environ, **listening})
    try:
        assert same(served.printed, first[-1].printed), served.printed
        for command in second:
            check(other, command)
        for command in later[:-1]:
            check(other, command)
        check(other, later[-1], within_s=_SOON_S)
    finally:
        assert served.stop() == 0
    for name in ("build", "hosts", "ops"):
        token = (folder / f"{name}.token").read_text().strip()
        assert token not in served.printed
        assert (folder / f"{name}.token").stat().st_mode & 0o077 == 0
