"""One file of tokens for all daemons of a fleet, and the warning of a daemon that asks nobody."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import wasm
from tests.e2e.bearers import add_token, bearer, token_command
from tests.e2e.daemon import ONE_ENGINE, Daemon, RedisDaemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, run
from tests.e2e.test_access import Stubs
from tests.servers.redis_server import RedisServer

valkey = a_valkey()

MISSING, INVALID = "CREDENTIALS_MISSING", "CREDENTIALS_INVALID"
ADVICE = (
    "everybody may use this daemon, and so what it shares with others: set tokens_file, policy_file"
    " or tls_client_ca_file for each of them"
)


def warnings(daemon: Daemon, token: str = "") -> list[str]:
    """Return what its log, its banner and its status say of callers without identities."""
    daemon.wait_for_log('"ready"')
    lines = [json.loads(line) for line in daemon.log_lines]
    logged = [
        each["advice"]
        for each in lines
        if (each["level"], each["event"]) == ("warning", "no identities in a fleet")
    ]
    shown = re.findall(r"^  warning +(.+)$", daemon.banner, re.MULTILINE)
    told = status(daemon, token)["open_fleet"]
    return [*logged, *shown, *([told] if told else [])]


def status(daemon: Daemon, token: str = "") -> dict[str, Any]:
    asked = urllib.request.Request(f"{daemon.admin_url}/status.json")
    if token:
        asked.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return dict(json.load(answer))


def test_a_token_of_one_daemon_counts_at_each_and_so_does_its_end(
    tmp_path: Path, valkey: RedisServer
) -> None:
    """Two daemons with a state directory each, one Redis, the same keys and one file of tokens."""
    file = tmp_path / "shared" / "tokens.json"
    states = [fresh_state(tmp_path / name, engines=ONE_ENGINE) for name in ("one", "other")]

    def token(state: Path, *words: str) -> str:
        return token_command(state, *words, "--tokens-file", str(file))

    ops = token(states[0], "add", "ops", "--role", "metrics")
    environ = {"WASMKILN_REDIS_URL": valkey.url, "WASMKILN_TOKENS_FILE": str(file)}
    with ExitStack() as stack:
        fleet = [stack.enter_context(RedisDaemon(state, environ=environ)) for state in states]
        callers = [stack.enter_context(Stubs(daemon.address)) for daemon in fleet]

        def verdicts(text: str = "") -> list[str]:
            return [each.capabilities(bearer(text) if text else ()) for each in callers]

        assert verdicts() == [MISSING, MISSING]
        assert [warnings(daemon, ops) for daemon in fleet] == [[], []]

        build = token(states[0], "add", "build", "--role", "compile")
        assert '"build"' in token(states[1], "ls", "--json")
        eventually(lambda: verdicts(build) == ["", ""], "a new token does not count")
        assert [each.compile(wasm.adder(1), bearer(build)) for each in callers] == ["", ""]
        assert verdicts() == [MISSING, MISSING]

        token(states[1], "revoke", "build")
        eventually(lambda: verdicts(build) == [INVALID, INVALID], "a revoked token counts")
        assert verdicts(ops) == ["", ""]
    assert not [state for state in states if (state / "access").exists()]


@pytest.mark.parametrize("shares", ["Redis", "object store", "nothing"])
def test_a_daemon_of_a_fleet_that_asks_nobody_warns(
    tmp_path: Path, valkey: RedisServer, shares: str
) -> None:
    environ = {
        "Redis": {"WASMKILN_REDIS_URL": valkey.url},
        "object store": {"WASMKILN_OBJECT_STORE_URL": f"file://{tmp_path}/bucket"},
        "nothing": {},
    }[shares]
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    (tmp_path / "bucket").mkdir()
    with RedisDaemon(state, environ=environ) as daemon, Stubs(daemon.address) as stubs:
        assert stubs.capabilities() == ""
        assert warnings(daemon) == ([] if shares == "nothing" else [ADVICE] * 3)
        ops = add_token(state, "ops", "metrics")
        eventually(lambda: stubs.capabilities() == MISSING, "still open")
        assert status(daemon, ops)["open_fleet"] == ""


def test_a_change_goes_behind_a_link_to_the_file(tmp_path: Path) -> None:
    """Other daemons read the file there: a new file in the link's place would reach none."""
    state, shared = tmp_path / "state", tmp_path / "shared" / "tokens.json"
    token_command(state, "add", "one", "--role", "read", "--tokens-file", str(shared))
    link = tmp_path / "tokens.json"
    link.symlink_to(shared)
    token_command(state, "add", "two", "--role", "read", "--tokens-file", str(link))
    assert link.is_symlink()
    assert [each["name"] for each in json.loads(shared.read_text())["tokens"]] == ["one", "two"]


def test_a_file_that_cannot_be_changed_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As in a Secret that is mounted. Root too cannot write to such a file system."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    shut = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    inside = ("unshare", "--mount", "--map-root-user", "sh", "-c", shut, folder)
    file = folder / "tokens.json"
    words = ("--state-dir", tmp_path / "state", "--tokens-file", file)
    token_command(tmp_path / "state", "add", "ci", "--role", "read", "--tokens-file", str(file))
    before = file.read_bytes()
    token = (*inside, WASMKILND, "token")
    assert '"ci"' in run(*token, "ls", "--json", *words).stdout
    for change in (("add", "more", "--role", "read"), ("revoke", "ci")):
        done = run(*token, *change, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"error: cannot change {file}: its folder is read-only for this user; change a copy of"
            " the file with --tokens-file, and put the copy in its place\n"
        )
    assert file.read_bytes() == before
