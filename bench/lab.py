"""What is measured: daemons with state of their own, engines, and servers beside them."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wasmkiln import Client
from wasmkilnd.engines.install import EngineInstallError, EngineStore, InstalledEngine
from wasmkilnd.settings import default_state_dir

ROOT = Path(__file__).resolve().parents[1]
ENGINE_NAMES = ("wasmer", "wasmtime")

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 40.0
_REST_TIMEOUT_S = 60.0
_POLL_S = 0.01
_LAST_LINE_OF_BANNER = "  try "


class BenchError(Exception):
    """It cannot be measured; the message is one sentence for the person at the terminal."""


def user_state_dir() -> Path:
    """Return the state directory of the user's own daemon, which `make run` fills."""
    named = os.environ.get("WASMKILN_STATE_DIR")
    return Path(named) if named else default_state_dir(os.environ)


def engines_in(state_dir: Path) -> dict[str, InstalledEngine]:
    """Return the newest installed version of each engine by name."""
    newest: dict[str, InstalledEngine] = {}
    for engine in EngineStore(state_dir).installed():
        newest.setdefault(engine.name, engine)
    return {name: newest[name] for name in ENGINE_NAMES if name in newest}


def engines_or_install() -> dict[str, InstalledEngine]:
    """Return both engines: the user's, else those that tests use. Raises BenchError."""
    for_tests = Path(os.environ.get("WASMKILN_TEST_STATE", ROOT / ".work" / "state"))
    for state_dir in (user_state_dir(), for_tests):
        engines = engines_in(state_dir)
        if len(engines) == len(ENGINE_NAMES):
            return engines
    try:
        return {name: EngineStore(for_tests).install(name) for name in ENGINE_NAMES}
    except EngineInstallError as failure:
        raise BenchError(str(failure)) from None


def make_state(path: Path, engines: dict[str, InstalledEngine]) -> Path:
    """Make a state directory with these engines, by link, and nothing else."""
    folder = path / "engines"
    folder.mkdir(parents=True)
    for engine in engines.values():
        (folder / engine.id).symlink_to(engine.path.resolve())
    return path


class Daemon:
    """One ``wasmkilnd serve`` with default settings on a free port, ready once this is made.

    Its log goes to a file: to read it in the process that measures would disturb that.
    """

    def __init__(
        self, state_dir: Path, *flags: str, program: Sequence[str] = ("wasmkilnd",)
    ) -> None:
        self._log = state_dir / "daemon.log"
        # The banner has the address, and is for terminals.
        self._terminal, its_end = pty.openpty()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", *program, "serve", "--state-dir", str(state_dir)),
                    *("--listen", "127.0.0.1:0", "--admin-listen", "none", "--log-format", "json"),
                    *flags,
                ],
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=its_end,
                stderr=log,
                text=True,
            )
        os.close(its_end)
        self.address = ""
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        # The end of a daemon that did not start is an error of its terminal.
        with os.fdopen(self._terminal) as terminal, contextlib.suppress(OSError):
            for line in terminal:
                words = line.split()
                if words[:1] == ["serving"]:
                    self.address = words[1].rstrip(",")
                if line.startswith(_LAST_LINE_OF_BANNER) or time.monotonic() > deadline:
                    break
        if not self.address:
            self.stop()
            words = self._log.read_text(errors="replace").strip().splitlines()
            raise BenchError(f"the daemon did not start: {words[-1] if words else 'no message'}")

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def client(self, timeout_s: float = 120.0) -> Client:
        """Return a new client; the caller closes it."""
        return Client(self.address, timeout_s=timeout_s)

    def stop(self) -> None:
        """End it, as an operator would."""
        end(self._process)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def come_to_rest(client: Client) -> None:
    """Wait until the daemon compiles nothing, and Redis has all: no reply waited for that."""
    until = time.monotonic() + _REST_TIMEOUT_S
    while (stats := client.stats()).busy_workers or stats.flights or stats.pending_writes:
        if time.monotonic() > until:
            raise BenchError("the daemon did not come to rest")
        time.sleep(_POLL_S)


def end(process: subprocess.Popen[str]) -> None:
    """End a process that this one started, and wait until it has."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


@dataclass(frozen=True)
class Server:
    """One of the bare servers."""

    port: int
    pid: int


def start_server(stack: ExitStack, *command: str) -> Server:
    """Start one of the bare servers; ``stack`` ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.bare", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(end, process)
    for line in _lines(process):
        return Server(int(line), process.pid)
    raise BenchError(f"the bare server {command[0]} did not start")


def _lines(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout
    return process.stdout


def _environment() -> dict[str, str]:
    """Return the environment without settings of the user's own daemon: defaults are measured."""
    return {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
