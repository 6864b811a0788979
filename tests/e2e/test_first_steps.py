"""What one does first works as five-minutes.md says, command by command."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.console import Command, Shell, same, sessions
from tests.e2e.daemon import fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT, Installed, search_path, without_settings
from tests.servers.redis_server import free_ports

PAGE = ROOT / "docs" / "start" / "five-minutes.md"
_SOON_S = 30.0


def check(shell: Shell, command: Command, within_s: float = 0) -> None:
    """Run a command, again until ``within_s`` have passed, until it prints what the page says."""
    until = time.monotonic() + within_s
    while not same(printed := shell.run(command.text), command.printed):
        assert time.monotonic() < until, f"$ {command.text}\n{printed}\n--- not\n{command.printed}"
        time.sleep(0.1)


class Terminals:
    """A folder, a state directory, ports instead of those of the page, and terminals."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports(2)
        text = PAGE.read_text()
        self.text = text.replace("50051", str(self.ports[0])).replace("9464", str(self.ports[1]))
        self.folder = folder / "folder"
        self.folder.mkdir()
        state = fresh_state(folder / "state", own_keys=True, engines=("wasmtime-50.0.1",))
        self._environ = {
            **without_settings(),
            "PATH": search_path(),
            "WASMKILN_STATE_DIR": str(state),
        }

    def shell(self, **environ: str) -> Shell:
        return Shell(self.folder, {**self._environ, **environ})

    @contextmanager
    def served(self, shell: Shell, command: Command) -> Iterator[str]:
        """Serve as the page says, in a terminal of its own; yield what that prints."""
        listening = {
            "WASMKILN_LISTEN": f"127.0.0.1:{self.ports[0]}",
            "WASMKILN_ADMIN_LISTEN": f"127.0.0.1:{self.ports[1]}",
            "WASMKILN_LOG_FORMAT": "text",  # With it, the banner needs no terminal.
        }
        output = self.folder / "served"
        with output.open("w") as written:
            process = subprocess.Popen(
                ["sh", "-c", shell.script(command.text)],
                cwd=self.folder,
                env={**self._environ, **listening},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(
                lambda: "\n  try " in output.read_text() or process.poll() is not None,
                "it does not serve",
                180,
            )
            # What it logs is on standard error, and not on the page.
            lines = output.read_text().splitlines(keepends=True)
            printed = "".join(line for line in lines if not line.startswith(("{", "20")))
            assert same(printed, command.printed), printed
            yield printed
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_zero_to_a_cached_module(engines: Installed, tmp_path: Path) -> None:
    at = Terminals(tmp_path)
    [[serve], compiles, [run], [again], *_] = sessions(at.text)
    [program] = re.findall(r"^```python\n(.*?)^```$", at.text, re.MULTILINE | re.DOTALL)
    (at.folder / "run.py").write_text(program)
    shell = at.shell(WASMKILN_ADDRESS=f"127.0.0.1:{at.ports[0]}")
    with at.served(shell, serve):
        for command in (*compiles, run):
            check(shell, command)
    with at.served(shell, serve):
        check(shell, again)


def test_one_daemon_tls_and_three_tokens(engines: Installed, tmp_path: Path) -> None:
    at = Terminals(tmp_path)
    [*_, first, second, later] = sessions(at.text)
    assert first[-1].text.startswith("wasmkilnd serve ")
    terminal, other = at.shell(), at.shell()
    for command in first[:-1]:
        check(terminal, command)
    with at.served(terminal, first[-1]) as printed:
        for command in (*second, *later[:-1]):
            check(other, command)
        check(other, later[-1], within_s=_SOON_S)
    everything = printed + (at.folder / "served").read_text()
    for name in ("build", "hosts", "ops"):
        token = (at.folder / f"{name}.token").read_text().strip()
        assert token not in everything
        assert (at.folder / f"{name}.token").stat().st_mode & 0o077 == 0
