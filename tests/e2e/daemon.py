"""A real daemon in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
import tty
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from wasmkiln import Client

from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, installed_engines, test_state_dir, without_settings

# Enough where versions do not matter: each engine more takes its part of a second to start.
TWO_ENGINES = ("wasmer-1.1.0", "wasmtime-50.0.1")
# Enough where the engine does not matter. It is the default one, and starts in less CPU time.
ONE_ENGINE = ("wasmer-1.1.0",)

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 120.0


def fresh_state(
    path: Path, *, own_keys: bool = False, engines: Sequence[str] | None = None
) -> Path:
    """Make a state directory at ``path`` that shares the tests' engines, or those named.

    Unless it is to have its own keys, it shares those of its neighbours, the state
    directories beside it: they are one fleet.
    """
    installed_engines()
    path.mkdir(parents=True, exist_ok=True)
    shared_engines = test_state_dir() / "engines"
    if not (path / "engines").exists():
        if engines is None:
            (path / "engines").symlink_to(shared_engines)
        else:
            (path / "engines").mkdir()
            for engine in engines:
                (path / "engines" / engine).symlink_to(shared_engines / engine)
    if not own_keys and not (path / "keys").exists():
        shared = path.parent / "keys"
        shared.mkdir(mode=0o700, exist_ok=True)
        (path / "keys").symlink_to(shared)
    return path


def state_with(path: Path, *engine_ids: str) -> Path:
    """Make a state directory at ``path`` with some of the tests' engines, and nothing else."""
    return fresh_state(path, own_keys=True, engines=engine_ids)


def is_ready(daemon: Daemon) -> bool:
    """Return whether a daemon says that it is ready."""
    try:
        with urllib.request.urlopen(f"{daemon.admin_url}/readyz", timeout=30):
            return True
    except urllib.error.HTTPError as no:
        return no.code != 503


# Jobs get what other processes leave: in a crowd of tests, little. And a worker takes its time to
# start: what a test shows with one, it shows of each.
_USUAL = {"WASMKILN_COMPILE_TIMEOUT_S": "120", "WASMKILN_WORKERS": "1"}


class Daemon:
    """A ``wasmkilnd serve``, ready once the constructor returns; it ends with the context."""

    _own: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        state_dir: Path,
        flags: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = (WASMKILND,),
        *,
        log_format: str = "json",
    ) -> None:
        """Start it; ``command`` is what runs instead of the program under test.

        It has one worker for each engine, unless its flags or its environment say otherwise. An
        empty ``log_format`` leaves that to the flags and the environment.
        """
        usual = {} if "--config" in flags else _USUAL
        self.state_dir = state_dir
        # The banner is for terminals.
        terminal, its_end = pty.openpty()
        tty.setraw(its_end)
        self.process = subprocess.Popen(
            [
                *command,
                *("serve", "--state-dir", str(state_dir)),
                *("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
                *(("--log-format", log_format) if log_format else ()),
                *flags,
            ],
            env={**without_settings(), **usual, **self._own, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=its_end,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(its_end)
        self._terminal = os.fdopen(terminal)
        self.banner = ""
        self.log_lines: list[str] = []
        self._ready = threading.Event()
        self._readers = [
            threading.Thread(target=self._read_banner, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        if not self._ready.wait(_READY_TIMEOUT_S) or "is ready" not in self.banner:
            self.kill()
            raise AssertionError(f"the daemon did not become ready: {self.log[-4000:]}")

    @property
    def pid(self) -> int:
        """The daemon's own process."""
        return self.process.pid

    def memory(self, what: str) -> int:
        """Return a size in bytes that the kernel tells of its own process, such as VmRSS."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the daemon has ended")

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return "".join(self.log_lines)

    @property
    def address(self) -> str:
        """Where it serves gRPC; the first of several."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """All addresses where it serves gRPC."""
        return self._row("serving").split(", ")

    @property
    def admin_url(self) -> str:
        """Where it serves metrics and health over HTTP."""
        return f"http://{self._row('metrics').split('/')[0]}"

    @property
    def http(self) -> str:
        """Where it serves artifacts over HTTP, without a scheme; the first of several."""
        return self._row("http").split("/v1")[0]

    def metric(self, name: str, *, token: str = "", **labels: str) -> float:
        """Return a metric's value; 0 if there is none."""
        wanted = f"wasmkiln_{name}"
        if labels:
            pairs = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            wanted += "{" + pairs + "}"
        for line in self.metrics(token).splitlines():
            if line.startswith(f"{wanted} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def metrics(self, token: str = "") -> str:
        """Return the page of metrics."""
        asked = urllib.request.Request(f"{self.admin_url}/metrics")
        if token:
            asked.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(asked, timeout=30) as page:
            return str(page.read().decode())

    def client(self, **options: Any) -> Client:
        """Return a new client of this daemon; the caller closes it."""
        return Client(self.address, **options)

    def children(self) -> list[int]:
        """Return the processes that the daemon started and that live."""
        tasks = Path(f"/proc/{self.pid}/task")
        return [
            int(child)
            for task in tasks.iterdir()
            for child in (task / "children").read_text().split()
        ]

    def stop(self) -> int:
        """End it with SIGTERM; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self._ended(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not stop: {self.log[-4000:]}") from None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self._ended(_STOP_TIMEOUT_S)

    def wait_for_log(self, words: str, timeout_s: float = 60.0) -> str:
        """Wait until a line of the log holds ``words``; return the line."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in list(self.log_lines):
                if words in line:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no {words!r} in the log: {self.log[-4000:]}")

    def _ended(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5)
        self._terminal.close()
        if self.process.stderr:
            self.process.stderr.close()
        return code

    def _row(self, name: str) -> str:
        found = re.search(rf"^  {name} +(.*)$", self.banner, re.MULTILINE)
        assert found, self.banner
        return found.group(1)

    def _read_banner(self) -> None:
        with contextlib.suppress(OSError):  # How a terminal says that nobody writes any more.
            for line in self._terminal:
                self.banner += line
                if line.startswith("  try "):
                    self._ready.set()
        self._ready.set()

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log_lines.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop it, unless it has ended already."""
        if self.process.poll() is None:
            self.stop()
        else:
            self._ended(0)


class RedisDaemon(Daemon):
    """A daemon without a host store: what its memory lost comes from Redis, or is compiled."""

    _own: ClassVar[Mapping[str, str]] = {"WASMKILN_HOST_STORE_BYTES": "0"}


FAILED = "cannot reload: what cannot be used stays as it was"


class Configured:
    """A daemon whose settings are in a file, and what its log says of a reload."""

    def __init__(self, state: Path, *flags: str, **settings: object) -> None:
        self.file = state.with_name("wasmkilnd.toml")
        self._settings: dict[str, object] = {"workers": 1, "redis_url": "none", **settings}
        self.write()
        log_format = "" if "log_format" in settings else "json"
        self.daemon = Daemon(state, ["--config", str(self.file), *flags], log_format=log_format)

    def write(self, **settings: object) -> None:
        """Change settings in the file."""
        self._settings |= settings
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in self._settings.items()]
        self.file.write_text("".join(lines))

    def reload(self, answer: str = "reloaded|cannot reload") -> list[dict[str, Any]]:
        """Send SIGHUP; return the lines of the log that this made, up to ``answer``."""
        return reload(self.daemon, answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.end()


def reload(daemon: Daemon, answer: str = "engines read again") -> list[dict[str, Any]]:
    """Send SIGHUP; return the lines of the log that this made, up to ``answer``."""
    daemon.wait_for_log('"ready"')  # Read by a thread, which may be behind.
    seen = len(daemon.log_lines)
    daemon.process.send_signal(signal.SIGHUP)

    def answered() -> bool:
        return bool(re.search(rf'"event": "({answer})\W', "".join(daemon.log_lines[seen:])))

    eventually(answered, "no answer to SIGHUP")
    lines = [json.loads(line) for line in daemon.log_lines[seen:]]
    # An earlier call's line is written after its answer.
    return [line for line in lines if line["event"] != "call"]
