"""Two daemons on each kind of Redis: what one does the other knows, and no secret is told."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from wasmkiln import (
    Client,
    CompileTimeout,
    ModuleNotLoaded,
    ModulePinned,
    ModuleQuarantined,
)

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, RedisDaemon, fresh_state
from tests.e2e.processes import embedded, eventually
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.deployments import KINDS_OF_REDIS, Deployment

[ENGINE] = ONE_ENGINE
KINDS = ("unix", "rediss", "acl", "rest", "sentinel", "cluster", "embedded")
# Those that differ by what the daemons may do there, or by how it is done: to the daemon the others
# are a server like any, once it is connected.
UNLIKE = ("acl", "rest", "cluster", "embedded")
# Their secrets are in each setting that may hold one, and in files.
TOLD_SECRETS = ("acl", "rest", "sentinel", "cluster")
SECRETS = (
    *("pass/word", "pass%2Fword", "the-token", "the-primary", "the-sentinels"),
    *(":secret", "wrong-secret"),
)
SETTINGS = {
    # CPU time runs out at the same point however busy the machine is.
    "WASMKILN_COMPILE_TIMEOUT_S": "60",
    "WASMKILN_COMPILE_CPU_S": "1",
    "WASMKILN_REDIS_TIMEOUT_S": "5",
}
# Valid, and for longer than anybody waits.
SLOW = wasm.nested_blocks(1_000_000)


@dataclass(frozen=True)
class Pair:
    """Two daemons on one Redis, or on one state directory and its embedded server."""

    kind: str
    running: Deployment
    daemons: tuple[Daemon, Daemon]
    clients: tuple[Client, Client]

    def upset(self) -> None:
        """Have a primary replaced, or all that is stored lost."""
        if self.kind == "embedded":
            os.kill(embedded(self.daemons[0].state_dir), signal.SIGKILL)
        elif self.kind in ("sentinel", "cluster"):
            self.running.fail_over()
        else:
            [raw] = self.running.raw
            with raw() as client:
                client.flushall()

    def told(self) -> str:
        """Return all that the daemons have told of Redis, and what ``wasmkilnd config`` tells."""
        words = [MessageToJson(client.stats()) for client in self.clients]
        words += [daemon.banner + daemon.log for daemon in self.daemons]
        for form in ([], ["--json"]) if self.kind in TOLD_SECRETS else ():
            shown = subprocess.run(
                [WASMKILND, "config", *form],
                env={"HOME": "/h", **self.running.environment},
                check=True,
                capture_output=True,
                text=True,
            )
            words.append(shown.stdout)
        return "".join(words)


@contextlib.contextmanager
def deployed(kind: str, folder: Path) -> Iterator[Deployment]:
    if kind == "embedded":
        yield Deployment("")
        return
    with KINDS_OF_REDIS[kind](folder) as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engines: Installed
) -> Iterator[Pair]:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    names = ("a", "a") if kind == "embedded" else ("a", "b")
    states = [fresh_state(folder / name, engines=ONE_ENGINE) for name in names]
    with deployed(kind, folder / "redis") as running:
        environ = {**SETTINGS, **running.environment}
        with (
            RedisDaemon(states[0], environ=environ) as one,
            RedisDaemon(states[1], environ=environ) as two,
            one.client() as here,
            two.client() as there,
        ):
            for client in (here, there):
                eventually(partial(redis_is_up, client), "Redis is not up")
            yield Pair(kind, running, (one, two), (here, there))


def redis_is_up(client: Client) -> bool:
    return client.stats().redis_up


def store(client: Client, tag: int) -> str:
    """Compile a module until Redis has taken it; return its digest."""
    deadline = time.monotonic() + 30
    while True:
        dropped = client.stats().dropped_writes
        header = client.compile(wasm.adder(tag), skip_cache_lookup=True).header
        settled(client)
        if client.stats().dropped_writes == dropped:
            return header.module_sha256
        assert time.monotonic() < deadline, "Redis took nothing in time"


def missing(client: Client, *digests: str) -> list[str]:
    return [key.module_sha256 for key in client.find_missing(digests)]


def check_found(pair: Pair) -> None:
    """What one daemon compiles the other finds."""
    one, two = pair.clients
    modules = [wasm.adder(1), wasm.many_functions(2_000, tag=1)]
    if pair.kind != "rest":  # Where a request may be no larger than the service's plan says.
        modules.append(wasm.with_data(1_200_000, 1))
    made = [one.compile(module) for module in modules]
    settled(one)
    absent = wasm.digest(wasm.adder(2))
    assert missing(two, *map(wasm.digest, modules), absent) == [absent]
    for artifact in made:
        found = two.compile(artifact.header.module_sha256)
        assert (found.header.origin, found.bytes) == (REDIS, artifact.bytes)
    # The module came along, so that another target is compiled without an upload.
    assert two.compile(made[0].header.module_sha256, cpu="baseline").header.origin == COMPILED
    for daemon, client in zip(pair.daemons, pair.clients, strict=True):
        stats = client.stats()
        assert (stats.redis_up, stats.redis_detail) == (True, "")
        assert stats.redis_mode == ("embedded" if pair.kind == "embedded" else "external")
        assert daemon.metric("redis_up") == 1
        assert "tier is down" not in daemon.log


def check_pins(pair: Pair) -> None:
    """A pin counts on both."""
    one, two = pair.clients
    digest = store(one, 20)

    def heard(daemon: Daemon, pins: int) -> None:
        daemon.process.send_signal(signal.SIGHUP)  # It looks after its pins now.
        eventually(lambda: daemon.metric("pins") == pins, "it is not heard of")

    assert not one.pin(digest).redis_unreachable
    heard(pair.daemons[1], 1)
    with pytest.raises(ModulePinned):
        two.evict(digest)
    two.evict(all=True)
    assert two.compile(digest).header.origin != COMPILED
    assert two.unpin(digest).removed
    heard(pair.daemons[0], 0)
    for client in pair.clients:
        client.evict(digest)
    assert missing(one, digest) == [digest]


def check_quarantine(pair: Pair) -> None:
    """Both refuse a module until it is released."""
    with pytest.raises(CompileTimeout):
        pair.clients[0].compile(SLOW)
    for client in pair.clients:
        with pytest.raises(ModuleQuarantined):
            client.compile(SLOW)
        [entry] = client.quarantined().modules
        assert (entry.module_sha256, entry.engine) == (wasm.digest(SLOW), ENGINE)
    assert pair.clients[1].release(wasm.digest(SLOW)).released == 1
    for client in pair.clients:
        assert not client.quarantined().modules


def check_one_compiles(pair: Pair) -> None:
    """One daemon compiles for all callers."""

    def compiles() -> float:
        ok = {"engine": ENGINE, "outcome": "ok"}
        return sum(daemon.metric("compiles_total", **ok) for daemon in pair.daemons)

    before, module = compiles(), wasm.nested_blocks(15_000, 1)
    with ThreadPoolExecutor(12) as callers:
        calls = [callers.submit(pair.clients[number % 2].compile, module) for number in range(12)]
        assert len({call.result().header.artifact_sha256 for call in calls}) == 1
    assert compiles() == before + 1


def test_what_one_daemon_does_the_other_knows(pair: Pair) -> None:
    check_found(pair)
    if pair.kind in UNLIKE:
        for check in (check_pins, check_quarantine, check_one_compiles):
            check(pair)
    for raw in pair.running.raw:
        with raw() as client:
            assert client.acl_log() == []  # The documented rights were enough for all of this.


def test_calls_go_on_while_a_primary_is_replaced_or_all_is_lost(pair: Pair) -> None:
    modules = [wasm.adder(tag) for tag in range(30, 34)]
    known = {wasm.digest(module): pair.clients[0].compile(module).bytes for module in modules}
    ended = threading.Event()

    def call(client: Client) -> int:
        """Ask for each module by its bytes, again and again; return how often."""
        count = 0
        while not ended.is_set() or not count:
            client.evict(all=True, tier="memory")
            for module in modules:
                assert client.compile(module).bytes == known[wasm.digest(module)]
                count += 1
        return count

    with ThreadPoolExecutor(2) as callers:
        calling = [callers.submit(call, client) for client in pair.clients]
        try:
            pair.upset()
        finally:
            ended.set()
        assert all(each.result() for each in calling)
    for client in pair.clients:
        eventually(partial(redis_is_up, client), "it does not come back")
    tags = itertools.count(40)

    def shares() -> bool:
        """Try new modules: of a cluster, a daemon may still miss the node that has one."""
        digests = [store(pair.clients[0], next(tags)) for _ in range(4)]
        with contextlib.suppress(ModuleNotLoaded):
            return {pair.clients[1].compile(each).header.origin for each in digests} == {REDIS}
        return False

    eventually(shares, "what one stores the other does not find")


def test_no_secret_is_told_nor_by_a_daemon_that_is_not_let_in(pair: Pair, tmp_path: Path) -> None:
    told = pair.told()
    if pair.running.stranger:
        url, access = pair.running.stranger
        state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
        with (
            RedisDaemon(state, environ=access.environment(url)) as daemon,
            daemon.client() as client,
        ):
            assert "which does not answer yet" in daemon.banner
            assert client.compile(wasm.adder(1)).header.origin == COMPILED
            line = daemon.wait_for_log("tier is down")
            stats = client.stats()
            assert not stats.redis_up
            assert stats.redis_detail.endswith("the user or password")
            assert stats.redis_detail in line
            assert daemon.metric("redis_up") == 0
        told += daemon.banner + daemon.log + MessageToJson(stats)
    assert not [secret for secret in SECRETS if secret in told]
