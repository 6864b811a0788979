"""Commands that root gives on a service's state: the service can use all that they make."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.programs import WASMKILND, installed_engines, why_not_as

SERVICE = 54321
"""A user without a name, as in containers."""
NOBODY = 65534
SOME_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""The public key of the first test of RFC 8032."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the service's user can reach: pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="wasmkiln-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def state(reachable: Path) -> Path:
    """The state directory of a service, as ``install -d -o`` makes it."""
    state = reachable / "state"
    state.mkdir(mode=0o700)
    os.chown(state, SERVICE, SERVICE)
    if why := why_not_as(SERVICE):
        pytest.skip(f"another user cannot run the daemon: {why}")
    return state


def as_service(*words: str, user: int = SERVICE) -> subprocess.CompletedProcess[str]:
    """Run a command as the service's user."""
    become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return run(*become, WASMKILND, *words)


def wasmkilnd(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root, from a folder that is root's alone."""
    return run(WASMKILND, *words, environ=environ)


def run(*words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
    return subprocess.run(
        words,
        env={**inherited, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def owners(folder: Path) -> set[int]:
    return {each.lstat().st_uid for each in (folder, *folder.rglob("*"))}


COMMANDS = (
    ("keys", "generate"),
    ("keys", "rotate"),
    ("token", "add", "ci", "--role", "compile"),
    ("token", "ls"),
    ("token", "revoke", "ci"),
    ("tls", "init"),
    ("engine", "ls"),
    ("config", "--admin-listen", "none", "--listen", "127.0.0.1:0"),
)
# There is no cache yet.
NO_CACHE = (("cache", "ls"), ("cache", "scrub", "--tier", "host_store"), ("cache", "export", "-"))


def test_the_service_owns_what_every_command_of_roots_leaves(state: Path) -> None:
    for commands, code in ((COMMANDS, 0), (NO_CACHE, 1)):
        for command in commands:
            done = wasmkilnd(*command, WASMKILN_STATE_DIR=str(state))
            assert done.returncode == code, (command, done)
            for words in ("Traceback", "chown"):
                assert words not in done.stdout + done.stderr, (command, done)
    assert owners(state) == {SERVICE}
    listed = as_service("keys", "ls", "--state-dir", str(state))
    assert listed.stdout.count("\n") == 3, listed


def test_root_reads_the_settings_and_the_audit_names_root(reachable: Path, state: Path) -> None:
    """A unit's settings may be readable for root alone."""
    config, audit = reachable / "wasmkilnd.toml", state / "audit.jsonl"
    config.write_text(f'state_dir = "{state}"\naudit_file = "{audit}"\n')
    config.chmod(0o600)
    done = wasmkilnd("token", "add", "ci", "--role", "read", WASMKILN_CONFIG=str(config))
    assert done.returncode == 0, done.stderr
    assert '"uid:0"' in audit.read_text()
    assert owners(state) == {SERVICE}


def test_a_file_that_the_owner_may_not_write_is_refused_with_the_reason(
    reachable: Path, state: Path
) -> None:
    roots = reachable / "roots"
    roots.mkdir(mode=0o700)
    words = ("cache", "export", str(roots / "values"), "--state-dir", str(state))
    # Nobody listens there: the file comes first.
    done = wasmkilnd(
        *(*words, "--redis-url", "redis://127.0.0.1:1"), WASMKILN_TRUSTED_KEYS=SOME_KEY
    )
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert f"this command acts as user {SERVICE}, who owns {state}" in done.stderr


def test_an_engine_that_root_removes_from_a_service_is_gone(state: Path) -> None:
    """And the one that stays is still served: nothing has become root's."""
    engines = state / "engines"
    engines.mkdir(mode=0o700)
    found = {engine.id: engine.path for engine in installed_engines()}
    for engine in ("wasmtime-50.0.1", "wasmtime-49.0.0"):
        subprocess.run(["cp", "-a", str(found[engine]), str(engines / engine)], check=True)
    run("chown", "-R", f"{SERVICE}:{SERVICE}", str(engines))
    done = wasmkilnd("engine", "remove", "wasmtime-49.0.0", "--state-dir", str(state))
    assert done.returncode == 0, done.stderr
    assert [engine.name for engine in engines.glob("wasm*")] == ["wasmtime-50.0.1"]
    assert owners(state) == {SERVICE}


def test_root_does_not_serve_from_a_services_state(state: Path) -> None:
    os.chown(state, NOBODY, -1)
    done = wasmkilnd("serve", "--state-dir", str(state))
    assert done.returncode == 1
    assert "it belongs to nobody" in done.stderr
    assert f"`runuser -u nobody -- wasmkilnd serve --state-dir {state}`" in done.stderr
    assert "chown" not in done.stderr


def test_what_the_refusal_says_serves(state: Path) -> None:
    done = wasmkilnd("serve", "--state-dir", str(state))
    *_, remedy, _ = done.stderr.split("`")
    become = remedy.removesuffix(f" wasmkilnd serve --state-dir {state}").split()
    assert become[0] == "setpriv"
    flags = ["--redis-url", "none", "--workers", "1"]
    engines = state / "engines"
    engines.mkdir(mode=0o700)
    [wasmtime] = [e for e in installed_engines() if e.id == "wasmtime-50.0.1"]
    subprocess.run(["cp", "-a", str(wasmtime.path), str(engines / wasmtime.id)], check=True)
    run("chown", "-R", f"{SERVICE}:{SERVICE}", str(engines))
    with Daemon(state, flags, command=[*become, WASMKILND]) as daemon, daemon.client() as client:
        assert client.health() == "SERVING"
        assert owners(state) == {SERVICE}
