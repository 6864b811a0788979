"""Root on the state of a service: each command refuses, and prints the line that does it."""

from __future__ import annotations

import os
import pwd
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.programs import WASMKILND, run, why_not_as

SERVICE = 54321
"""A user without a name, as in containers."""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")


@pytest.fixture
def state() -> Iterator[Path]:
    """The state directory of a service, as ``install -d -o`` makes it, where its user can reach."""
    if why := why_not_as(SERVICE):
        pytest.skip(f"another user cannot run the daemon: {why}")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-") as folder:
        Path(folder).chmod(0o711)
        state = Path(folder, "state")
        state.mkdir(mode=0o700)
        os.chown(state, SERVICE, SERVICE)
        yield state


def owners(folder: Path) -> set[int]:
    return {each.lstat().st_uid for each in (folder, *folder.rglob("*"))}


COMMANDS = (
    ("keys", "generate"),
    ("keys", "rotate"),
    ("keys", "ls"),
    ("token", "add", "ci", "--role", "compile"),
    ("token", "ls"),
    ("token", "revoke", "ci"),
    ("tls", "init", "--host", "a name"),
    ("engine", "ls"),
    ("engine", "install", "wasmtime"),
    ("engine", "remove", "wasmtime-50.0.1"),
    ("cache", "ls"),
    ("cache", "scrub", "--tier", "host_store"),
    ("cache", "export", "file:///tmp"),
    ("reload",),
    ("serve", "--redis-url", "none"),
)
CONFIG = ("config", "--admin-listen", "none", "--listen", "127.0.0.1:0")


@pytest.mark.parametrize("command", [*COMMANDS, CONFIG], ids=lambda words: "-".join(words[:2]))
def test_each_command_refuses_and_names_the_line_to_give(
    state: Path, command: tuple[str, ...]
) -> None:
    done = run(WASMKILND, *command, "--state-dir", str(state))
    assert done.returncode == (2 if command == CONFIG else 1), done
    *logged, told = done.stderr.splitlines()
    assert not logged or command[0] == "serve"
    assert told.startswith(f"error: cannot run as root: {state} belongs to user {SERVICE}; ")
    become = ["setpriv", "--reuid", str(SERVICE), "--regid", str(SERVICE), "--clear-groups"]
    given = [WASMKILND, *command, "--state-dir", str(state)]
    assert line_in(told) == [*become, *given]
    assert list(state.iterdir()) == []


def line_in(told: str) -> Sequence[str]:
    """Return the command that a refusal prints."""
    _, line, _ = told.split("`")
    return shlex.split(line)


def test_the_lines_do_what_root_wanted(state: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for words in (("keys", "generate"), ("token", "add", "ci", "--role", "read"), ("tls", "init")):
        refused = run(WASMKILND, *words, WASMKILN_STATE_DIR=str(state))
        done = run(*line_in(refused.stderr))
        assert done.returncode == 0, done.stderr
    assert owners(state) == {SERVICE}
    assert {path.name for path in state.iterdir()} == {"access", "keys", "tls"}
    # A user with a name gets a line of runuser.
    for path in (state, *state.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    line = line_in(run(WASMKILND, "keys", "rotate", "--state-dir", str(state)).stderr)
    assert line[:4] == ["runuser", "-u", "nobody", "--"]
    done = run(*line)
    assert done.returncode == 0, done.stderr
    assert owners(state) == {nobody.pw_uid}


def test_as_a_module_the_line_names_the_interpreter(state: Path) -> None:
    python = str(Path(WASMKILND).parent / "python")
    refused = run(python, "-m", "wasmkilnd", "keys", "ls", "--state-dir", str(state))
    line = line_in(refused.stderr)
    assert line[-7:] == [python, "-m", "wasmkilnd", "keys", "ls", "--state-dir", str(state)]
    assert run(*line).returncode == 0
