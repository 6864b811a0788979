"""From a release to the program under test, back again, and both in one fleet.

What a release stored may be a miss for another. Nothing may be wrong, and what an operator has
set up (tokens, keys, pins, names) holds in both directions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmkiln import (
    Artifact,
    Client,
    CompileTimeout,
    CredentialsInvalid,
    ModuleNotLoaded,
    ModuleQuarantined,
)

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, RedisDaemon, fresh_state
from tests.e2e.processes import embedded, eventually, within
from tests.e2e.programs import WASMKILN, WASMKILND, Installed, run
from tests.e2e.releases import Release, release
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

# The first that asks for the release may have to build it.
pytestmark = pytest.mark.timeout(900)

ENGINE, OLDER_ENGINE = "wasmtime-50.0.1", "wasmtime-49.0.0"
MODULES = [wasm.adder(1), wasm.many_functions(1_000, tag=2), wasm.with_data(600_000, 3)]
PINNED = wasm.digest(MODULES[0])
TENANT_S = wasm.adder(4)
# Its artifact is signed with a key that is revoked before the other version starts.
DISTRUSTED_S = wasm.adder(5)
# Valid, and for longer than a compile may take here.
SLOW = wasm.long_function(300_000)
# The causes that deploy/prometheus-alerts.yml takes for no attack.
HARMLESS = {"incomplete", "revoked", "too_old", "version"}
POLICY = """
[[rule]]
identity = "token:tenant"
namespace = "team-a"
"""


@pytest.fixture(scope="session")
def old() -> Release:
    """The release that the program under test has to follow, and to live beside."""
    return release("0.6.0")


def check_calm(daemon: Daemon, token: str = "", *, evicting: bool = False) -> None:
    """Nothing happened that an operator has to look at; ``evicting``: but for its own Evicts."""
    assert {*rejected(daemon, token)} <= HARMLESS | ({"evicted"} if evicting else set())
    lines = [json.loads(line) for line in daemon.log_lines if line.startswith("{")]
    assert [line for line in lines if line["level"] == "error"] == []


class House:
    """A state directory that daemons of different versions use, one after the other."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.state = fresh_state(folder / "state", own_keys=True, engines=(ENGINE, OLDER_ENGINE))
        policy = folder / "policy.toml"
        policy.write_text(POLICY)
        self._flags = ["--policy-file", str(policy), "--workers", "1", "--redis-url", redis_url]
        self.tokens: dict[str, str] = {}
        self.made: dict[str, str] = {}
        """The digest of each module's artifact, by that of the module."""
        self.keys: dict[str, str] = {}
        """What each key is for, by its id."""
        self.revoked = ""
        """The id of the key that was revoked."""

    @contextmanager
    def daemon(self, program: str) -> Iterator[Daemon]:
        """Run a version of the daemon."""
        with Daemon(self.state, self._flags, command=(program,)) as running:
            yield running
            check_calm(running, self.tokens["ops"])

    def command(self, program: str, *words: str) -> str:
        """Run a version's command on the state directory; return what it prints."""
        done = run(program, *words, "--state-dir", self.state)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self, daemon: Daemon, who: str) -> Client:
        """Return a client that believes the keys of the state directory, less those revoked."""
        trusted = self.state / "keys" / "trusted"
        return daemon.client(token=self.tokens[who], trusted_keys=trusted, timeout_s=120)

    def settle_in(self, program: str) -> None:
        """Have a version set up all that an operator may, and compile modules."""
        self.command(program, "engine", "use", OLDER_ENGINE)
        for who in ("ci", "ops", "tenant", "gone"):
            roles = ("--role", "admin" if who == "ops" else "compile", "--role", "metrics")
            self.tokens[who] = self.command(program, "token", "add", who, *roles).strip()
        self.command(program, "token", "revoke", "gone")
        with self.daemon(program) as daemon:
            with self.client(daemon, "ci") as ci:
                self._keep(ci.compile(DISTRUSTED_S))
                settled(ci)
            [first] = self._keys(program)
            self.command(program, "keys", "rotate")
            self.command(program, "reload")
            with self.client(daemon, "ci") as ci:
                for engine in (None, ENGINE):
                    for module in MODULES:
                        self._keep(ci.compile(module, engine=engine))
                settled(ci)
            self.command(program, "keys", "rotate")
            self.command(program, "reload")
            with self.client(daemon, "tenant") as tenant, self.client(daemon, "ops") as ops:
                self._keep(tenant.compile(TENANT_S))
                settled(ops)
                assert not ops.pin(PINNED).redis_unreachable
        self.command(program, "keys", "revoke", first)
        self.keys, self.revoked = self._keys(program), first
        assert len(self.keys) == 3

    def check(self, program: str, *, back: bool = False) -> None:
        """All that was set up holds, and calls get what they got, from the host store or Redis.

        ``back``: at the version that compiled what a key signed that was revoked since.
        """
        with self.daemon(program) as daemon:
            with self.client(daemon, "gone") as gone, pytest.raises(CredentialsInvalid):
                gone.compile(MODULES[0])
            with self.client(daemon, "ci") as ci, self.client(daemon, "tenant") as tenant:
                got = [ci.compile(module) for module in MODULES]
                assert {one.header.engine.id for one in got} == {OLDER_ENGINE}
                got += [ci.compile(module, engine=ENGINE) for module in MODULES]
                got.append(tenant.compile(TENANT_S))
                for one in got:
                    self._keep(one)
                    assert one.header.origin != COMPILED
                again = ci.compile(DISTRUSTED_S)
                self._keep(again)
                assert back or again.header.origin == COMPILED
                with pytest.raises(ModuleNotLoaded):
                    ci.compile(wasm.digest(TENANT_S))
                settled(ci)
            with self.client(daemon, "ops") as ops:
                assert [pin.module_sha256 for pin in ops.pins().pins] == [PINNED]
                stats = ops.stats()
                assert stats.redis_up
                assert stats.engine_names["wasmtime"] == OLDER_ENGINE
            # 0.6 does not say which keys are revoked.
            revoked = {self.revoked: "revoked"} if program == WASMKILND else {}
            assert self._keys(program) == self.keys | revoked

    def _keep(self, artifact: Artifact) -> None:
        """An artifact is what it was before, of whichever version and tier."""
        header = artifact.header
        known = self.made.setdefault(
            f"{header.module_sha256} {header.engine.id}", header.artifact_sha256
        )
        assert header.artifact_sha256 == known

    def _keys(self, program: str) -> dict[str, str]:
        word = "ls" if program == WASMKILND else "list"
        listed = json.loads(self.command(program, "keys", word, "--json"))
        return {key["id"]: key["role"] for key in listed}


def test_a_state_directory_goes_over_and_back(
    engines: Installed, tmp_path: Path, old: Release
) -> None:
    with redis_server(binary_of("valkey"), tmp_path / "server") as server:
        house = House(tmp_path, server.url)
        house.settle_in(old.wasmkilnd)
        house.check(WASMKILND)
        # Back at the old version, which finds its values as they were.
        house.check(old.wasmkilnd, back=True)


def test_both_versions_share_one_embedded_server(
    engines: Installed, tmp_path: Path, old: Release
) -> None:
    """Whichever starts it, and whichever ends first; what is stored outlives each."""
    state = fresh_state(tmp_path / "state", engines=(ENGINE,))
    made: dict[str, str] = {}

    def is_found(client: Client) -> bool:
        client.evict(all=True, tier="memory")
        headers = [client.compile(module).header for module in MODULES]
        for header in headers:
            known = made.setdefault(header.module_sha256, header.artifact_sha256)
            assert header.artifact_sha256 == known
        return {header.origin for header in headers} == {REDIS}

    def check_stored(*daemons: Daemon) -> None:
        for daemon in daemons:
            with daemon.client() as client:
                eventually(lambda: client.stats().redis_up, "the embedded server is not up")
                assert client.stats().redis_mode == "embedded"
                is_found(client)
                settled(client)
                assert is_found(client)
            check_calm(daemon)

    # Without a host store: what is found was in the embedded server.
    for first, second in ((old.wasmkilnd, WASMKILND), (WASMKILND, old.wasmkilnd)):
        with RedisDaemon(state, command=(first,)) as starts:
            with RedisDaemon(state, command=(second,)) as joins:
                server = embedded(state)
                check_stored(starts, joins)
            check_stored(starts)
            assert embedded(state) == server
            with RedisDaemon(state, command=(second,)) as stays:
                check_stored(stays)
                starts.kill()
                with stays.client() as client:
                    eventually(lambda: is_found(client), "nobody started the server again")
        eventually(lambda: not within(state), "something outlived the daemons")
    with RedisDaemon(state, command=(old.wasmkilnd,)) as again, again.client() as client:
        eventually(lambda: client.stats().redis_up, "the embedded server is not up")
        assert is_found(client), "the data that it stored first are gone"


@dataclass(frozen=True)
class Both:
    """A daemon of each version: they share a Redis, keys and a host store."""

    old: Daemon
    new: Daemon
    store: Path


@pytest.fixture(scope="module")
def both(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory, old: Release
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    with redis_server(binary_of("valkey"), folder / "server") as server:
        environ = {
            "WASMKILN_REDIS_URL": server.url,
            "WASMKILN_HOST_STORE_DIR": str(folder / "store"),
            "WASMKILN_WORKERS": "1",
            "WASMKILN_COMPILE_TIMEOUT_S": "60",
            "WASMKILN_COMPILE_CPU_S": "1",
            "WASMKILN_REDIS_TIMEOUT_S": "5",
        }
        states = [fresh_state(folder / name, engines=(ENGINE,)) for name in ("old", "new")]
        with (
            Daemon(states[0], environ=environ, command=(old.wasmkilnd,)) as one,
            Daemon(states[1], environ=environ) as other,
        ):
            yield Both(one, other, folder / "store")
            for daemon in (one, other):
                check_calm(daemon, evicting=True)


@pytest.fixture
def clients(both: Both) -> Iterator[tuple[Client, Client]]:
    with both.old.client(timeout_s=120) as one, both.new.client(timeout_s=120) as other:
        yield one, other


def test_commands_of_one_know_a_daemon_of_the_other(both: Both, old: Release) -> None:
    """So the configuration is checked while the old daemon serves, at the addresses that it has."""
    admin = both.old.admin_url.removeprefix("http://")
    addresses = ("--listen", both.old.address, "--admin-listen", admin)
    done = run(WASMKILND, "config", "--state-dir", both.old.state_dir, *addresses)
    assert done.returncode == 0, done.stderr
    for program, daemon in ((WASMKILND, both.old), (old.wasmkilnd, both.new)):
        done = run(program, "reload", "--state-dir", daemon.state_dir)
        assert done.returncode == 0, done.stderr
        assert f"process id {daemon.pid} is reloaded" in done.stderr + done.stdout


def test_both_answer_every_call_right_under_load(
    both: Both, clients: tuple[Client, Client]
) -> None:
    modules = [wasm.adder(tag) for tag in range(100, 108)]
    rounds = range(6)

    def caller(client: Client, evicting: bool) -> set[tuple[str, str]]:
        """Ask for all again and again; return which artifact each module has."""
        seen = set()
        for number in rounds:
            for module in modules:
                header = client.compile(module).header
                seen.add((header.module_sha256, header.artifact_sha256))
            if evicting:
                client.evict(wasm.digest(modules[number]))
            client.evict(all=True, tier="memory")
        return seen

    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(caller, client, evicting)
            for client in clients
            for evicting in (True, False)
        ]
        seen = set[tuple[str, str]]().union(*(call.result() for call in calls))
    assert len(seen) == len(modules)


def test_a_quarantine_of_one_is_no_error_to_the_other(clients: tuple[Client, Client]) -> None:
    for client, other in (clients, clients[::-1]):
        with pytest.raises(CompileTimeout):
            client.compile(SLOW)
        # Whether it hears of it or not.
        with pytest.raises((ModuleQuarantined, CompileTimeout)):
            other.compile(SLOW)
        for each in clients:
            assert not each.release(wasm.digest(SLOW)).redis_unreachable
            each.compile(wasm.adder(130))


@pytest.mark.parametrize("who", ["old client, new daemon", "new client, old daemon"])
def test_the_client_of_the_other_version(
    both: Both, old: Release, tmp_path: Path, who: str
) -> None:
    mine = who.startswith("old")
    program, daemon = (old.wasmkiln, both.new) if mine else (WASMKILN, both.old)
    modules = [wasm.adder(tag + mine) for tag in (160, 162, 164)]
    digest, unknown = wasm.digest(modules[0]), "ab" * 32
    folder = tmp_path / "modules"
    folder.mkdir()
    files = [folder / f"{number}.wasm" for number in range(len(modules))]
    bad, invalid = tmp_path / "bad.wasm", tmp_path / "invalid.wasm"
    contents = [*modules, b"garbage", modules[0][:-1]]
    for file, module in zip((*files, bad, invalid), contents, strict=True):
        file.write_bytes(module)

    def told(*words: object, code: int = 0, address: str = daemon.address) -> str:
        store = {"WASMKILN_HOST_STORE_DIR": str(both.store)}
        done = run(program, "--json", "--address", address, *words, **store)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    assert digest in told("compile", files[0], "-o", tmp_path)
    [saved] = tmp_path.glob("0.*.cwasm")
    # With the daemon, and by what it wrote alone.
    for address in (daemon.address, "127.0.0.1:1"):
        path = json.loads(told("path", files[0], "--engine", ENGINE, address=address))["path"]
        assert Path(path).is_relative_to(both.store)
        assert Path(path).read_bytes() == saved.read_bytes()
    assert "compiled" in told("warm", folder)
    missing = told("find-missing", *files, unknown)
    assert unknown in missing
    assert digest not in missing
    assert json.loads(told("stats"))["redis_up"]
    told("pin", "add", files[0])
    assert digest in told("pin", "ls")
    told("pin", "rm", files[0])
    told("evict", "--module", digest, "--yes")
    for words, reason in (
        ((bad,), "NOT_WASM"),
        ((unknown,), "MODULE_NOT_LOADED"),
        ((files[0], "--engine", "nothing"), "ENGINE_UNKNOWN"),
        ((invalid,), "MODULE_INVALID"),
    ):
        assert reason in told("compile", *words, code=1)
