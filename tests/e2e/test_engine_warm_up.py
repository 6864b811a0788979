"""A fleet changes to a new engine: what is hot is compiled for it before names stand for it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkiln import Client
from wasmkiln.v1 import types_pb2
from wasmkiln.v1.module_service_pb2 import EngineWarmUp

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon, reload, state_with
from tests.e2e.fixtures import a_valkey
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed, run
from tests.e2e.test_engine_changes import NEW, OLD, install
from tests.servers.redis_server import RedisServer

MODULES = [wasm.adder(number) for number in range(50)]
TOP = 20
# The hot ones are not those that were compiled first.
HOT, COLD = MODULES[30:], MODULES[:30]


def order(state: Path, top: int) -> str:
    """Have the new engine warmed; it is installed already. Return what the command says."""
    words = ("engine", "install", NEW.replace("-", "=="), "--warm-from", OLD, "--top", top)
    said = run(WASMKILND, *words, "--state-dir", state).stderr
    assert f"compiles the {top} artifacts that are used most with {OLD}" in said
    return said


def ordered(state: Path) -> list[object]:
    """Return the orders that are not done yet."""
    orders: list[object] = json.loads((state / "engine-names.json").read_text())["warm_ups"]
    return orders


class Fleet:
    """Two daemons on one Redis that begin with the old engine."""

    def __init__(self, folder: Path, url: str) -> None:
        self._environ = {
            "WASMKILN_REDIS_URL": url,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
            "WASMKILN_WORKERS": "2",
        }
        states = [state_with(folder / name, OLD) for name in ("a", "b")]
        with ThreadPoolExecutor(2) as threads:
            self.daemons = list(threads.map(self.start, states))

    def start(self, state: Path) -> RedisDaemon:
        """Start a daemon, or one that was killed again."""
        return RedisDaemon(state, environ=self._environ)

    def use(self) -> None:
        """Have every module compiled, and the hot ones used more, on one daemon or the other."""
        with self.daemons[0].client() as one, self.daemons[1].client() as other:
            for module in MODULES:
                one.compile(module, engine=OLD)
            for number, module in enumerate(HOT):
                for _ in range(2):
                    (one, other)[number % 2].compile(wasm.digest(module), engine=OLD)

    def upgrade(self) -> None:
        """Install the new engine on both, with an order, and reload both."""
        for daemon in self.daemons:
            reload(daemon)  # This saves what was counted: each then knows what is hot on both.
        for daemon in self.daemons:
            install(daemon, NEW)
            assert "when you reload it" in order(daemon.state_dir, TOP)
        for daemon in self.daemons:
            daemon.process.send_signal(signal.SIGHUP)

    def compiles(self) -> int:
        """Return how many artifacts both compiled for the new engine."""
        outcomes = {"engine": NEW, "outcome": "ok"}
        return int(sum(daemon.metric("compiles_total", **outcomes) for daemon in self.daemons))


valkey = a_valkey()


@pytest.fixture
def fleet(tmp_path: Path, valkey: RedisServer) -> Iterator[Fleet]:
    started = Fleet(tmp_path, valkey.url)
    try:
        yield started
    finally:
        for daemon in started.daemons:
            daemon.end()


def progress(client: Client) -> EngineWarmUp:
    """Return the daemon's one warm-up; an empty one if there is none yet."""
    found = client.stats().engine_warm_ups
    return found[0] if found else EngineWarmUp()


def origins(client: Client, modules: Sequence[bytes], engine: str) -> set[types_pb2.Origin]:
    """Ask for each by digest; return where the artifacts came from."""
    headers = [client.compile(wasm.digest(each), engine=engine).header for each in modules]
    assert {header.engine.id for header in headers} == {NEW}
    return {header.origin for header in headers}


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_hot_is_there_before_names_move(fleet: Fleet, killed: bool) -> None:
    """Also where a daemon is killed in the middle, and goes on."""
    fleet.use()
    fleet.upgrade()
    if killed:
        one = fleet.daemons[1]
        with one.client() as client:
            eventually(lambda: progress(client).total == TOP, f"no work: {one.log[-3000:]}", 120)
        one.kill()
        fleet.daemons[1] = fleet.start(one.state_dir)
    for daemon in fleet.daemons:
        with daemon.client() as client:
            eventually(lambda: progress(client).ended, f"no end: {daemon.log[-3000:]}", 120)
            seen = progress(client)
            assert (seen.engine, seen.from_engine) == (NEW, OLD)
            assert (seen.total, seen.done, seen.failed) == (TOP, TOP, 0)
        assert daemon.log.index('"engine warm-up began"') < daemon.log.index('"names stand for')
        assert not ordered(daemon.state_dir)
        assert daemon.metric("engine_warm_up_artifacts", engine=NEW, state="done") == TOP
    # Once in the whole fleet, and nothing but what is hot; what the killed one compiled and did
    # not store is compiled again.
    compiles = fleet.compiles()
    assert compiles <= TOP if killed else compiles == TOP
    for daemon in fleet.daemons:
        with daemon.client() as client:
            assert origins(client, HOT, "wasmtime") == {types_pb2.ORIGIN_MEMORY}
    assert fleet.compiles() == compiles
    with fleet.daemons[0].client() as client:
        assert origins(client, COLD[:1], "wasmtime") == {types_pb2.ORIGIN_COMPILED}


def test_until_the_end_names_stand_for_what_they_did(fleet: Fleet, valkey: RedisServer) -> None:
    fleet.use()
    one, _ = fleet.daemons
    state = one.state_dir
    for daemon in fleet.daemons:
        reload(daemon)
    # Only the shared tier, which does not answer now, has what the new engine should compile.
    with one.client() as client:
        client.evict(all=True, tier="memory")
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        install(one, NEW)
        order(state, TOP)
        one.process.send_signal(signal.SIGHUP)
        one.wait_for_log('"engines changed"', 60)
        with one.client(timeout_s=60) as client:
            first = client.compile(wasm.adder(1001), engine="wasmtime").header
            by_id = client.compile(wasm.adder(1001), engine=NEW).header
            assert (first.engine.id, by_id.engine.id) == (OLD, NEW)
            assert not progress(client).ended
        assert ordered(state)
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    with one.client() as client:
        eventually(lambda: progress(client).ended, f"no end: {one.log[-3000:]}", 120)
        assert client.compile(wasm.adder(1001), engine="wasmtime").header.engine.id == NEW
        assert progress(client).done == TOP


def test_without_a_shared_tier_a_daemon_goes_by_what_it_served_itself(
    engines: Installed, tmp_path: Path
) -> None:
    state, flags = state_with(tmp_path / "state", OLD), ["--redis-url", "none"]
    with RedisDaemon(state, flags) as daemon, daemon.client() as client:
        for module in MODULES[:4]:
            client.compile(module)
        for _ in range(3):
            client.compile(wasm.digest(MODULES[2]))
        install(daemon, NEW)
        order(state, 1)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: progress(client).ended, f"no end: {daemon.log[-3000:]}", 60)
        assert progress(client).done == 1
        assert origins(client, MODULES[2:3], NEW) == {types_pb2.ORIGIN_MEMORY}
