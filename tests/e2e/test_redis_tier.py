"""The Redis tier of one daemon: what it writes and when, and what it shares and leaves alone."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import redis
from wasmkiln import Client

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.redis_gate import Gate
from tests.e2e.stored_values import names_of
from tests.e2e.test_cache import COMPILED, MEMORY, REDIS, settled
from tests.servers.redis_server import RedisServer, binary_of, redis_server

WEEK_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Site:
    """A daemon with a short queue of writes, and its Redis."""

    daemon: RedisDaemon
    client: Client
    gate: Gate
    running: RedisServer
    server: redis.Redis

    def artifact_of(self, module: bytes) -> set[bytes]:
        """Compile a module, and have it stored; return the names of its artifact's values."""
        self.client.load(module)
        settled(self.client)
        before = names_of(self.server, wasm.digest(module))
        assert self.client.compile(module).header.origin == COMPILED
        settled(self.client)
        return names_of(self.server, wasm.digest(module)) - before

    def forget(self) -> None:
        """Have nothing in memory."""
        self.client.evict(everything=True, tier="memory")

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Have the server answer nothing."""
        self.running.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.running.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        gate = stack.enter_context(Gate(folder / "server" / "server.sock"))
        environ = {
            "WASMKILN_REDIS_URL": f"redis://127.0.0.1:{gate.port}",
            # So that tests can have look-ups wait, also where the machine is busy.
            "WASMKILN_REDIS_TIMEOUT_S": "10",
            # As much as one module and one artifact may wait to be written.
            "WASMKILN_MAX_MODULE_BYTES": "24KiB",
            "WASMKILN_MAX_ARTIFACT_BYTES": "40KiB",
        }
        state = fresh_state(folder / "state", engines=ONE_ENGINE)
        daemon = stack.enter_context(RedisDaemon(state, environ=environ))
        client = stack.enter_context(daemon.client(timeout_s=120))
        server = stack.enter_context(redis.Redis.from_url(running.url))
        yield Site(daemon, client, gate, running, server)


@pytest.fixture(autouse=True)
def emptied(site: Site) -> None:
    settled(site.client)
    site.client.evict(everything=True)


def test_values_live_for_a_week_and_carry_prefix_and_digest(site: Site) -> None:
    assert site.artifact_of(wasm.adder(1))
    names = names_of(site.server, wasm.digest(wasm.adder(1)))
    assert len(names) > 1
    for name in names:
        assert WEEK_S - 600 < site.server.ttl(name) <= WEEK_S
    assert all(name.startswith(b"wasm:") for name in site.server.scan_iter())


def test_callers_of_one_value_share_one_look_up(site: Site) -> None:
    site.artifact_of(wasm.adder(2))
    site.forget()
    before = site.daemon.metric("tier_lookups_total", outcome="hit", tier="redis", what="artifact")
    with ThreadPoolExecutor(6) as callers:
        with site.gate.closed():
            calls = [callers.submit(site.client.compile, wasm.adder(2)) for _ in range(6)]
            site.gate.wait_for(wasm.digest(wasm.adder(2)))
        found = [call.result() for call in calls]
    assert len({artifact.bytes for artifact in found}) == 1
    assert COMPILED not in {artifact.header.origin for artifact in found}
    after = site.daemon.metric("tier_lookups_total", outcome="hit", tier="redis", what="artifact")
    assert after == before + 1


def test_an_evict_takes_from_redis_what_it_names(site: Site) -> None:
    one, other = wasm.adder(4), wasm.adder(5)
    of_one, of_other = site.artifact_of(one), site.artifact_of(other)
    foreign = {b"other:1": b"a", b"wasmx:2": b"b", b"wasm": b"c"}
    for name, value in foreign.items():
        site.server.set(name, value)
    gone = site.client.evict(module_sha256=wasm.digest(one), tier="redis")
    assert (gone.artifacts, gone.modules, list(gone.unreachable_tiers)) == (1, 1, [])
    assert gone.bytes
    assert not site.server.exists(*of_one)
    assert site.server.exists(*of_other) == len(of_other)
    assert site.client.compile(one).header.origin == MEMORY
    gone = site.client.evict(engine=ONE_ENGINE[0], tier="redis")
    assert (gone.artifacts, gone.modules) == (1, 0)
    assert not site.server.exists(*of_other)
    site.forget()
    # The module is still there, and need not be sent.
    assert site.client.compile(wasm.digest(other)).header.origin == COMPILED
    settled(site.client)
    gone = site.client.evict(everything=True, tier="redis")
    assert (gone.artifacts, gone.modules) == (1, 1)
    assert not site.server.exists(*of_one, *of_other)
    assert site.client.compile(other).header.origin == MEMORY
    for name, value in foreign.items():
        assert site.server.get(name) == value
        site.server.delete(name)


def test_no_answer_waits_for_a_write_and_the_newest_writes_outlast_an_outage(site: Site) -> None:
    made = []
    dropped = site.daemon.metric("redis_dropped_writes_total")
    with site.hanging():
        for tag in range(8):
            header = site.client.compile(wasm.with_data(20_000, tag)).header
            assert header.origin == COMPILED
            made.append(header.module_sha256)
        stats = site.client.stats()
        assert stats.pending_writes
        assert not stats.redis_up
        assert stats.redis_detail
        # The queue holds three of them or less.
        assert site.daemon.metric("redis_dropped_writes_total") - dropped >= 5
        line = json.loads(site.daemon.wait_for_log("a cache write was dropped"))
        assert made[0] in line.values()
    eventually(lambda: site.client.stats().redis_up, "Redis is not found again")
    settled(site.client)
    site.forget()
    assert site.client.compile(wasm.with_data(20_000, 7)).header.origin == REDIS
    assert site.client.compile(wasm.with_data(20_000, 0)).header.origin == COMPILED


def test_a_server_that_is_full_is_told_once_and_is_no_outage(site: Site) -> None:
    dropped = site.daemon.metric("redis_dropped_writes_total")
    failed = site.daemon.metric("tier_stores_total", outcome="error", tier="redis")
    site.server.config_set("maxmemory", "1")
    try:
        for tag in range(10, 13):
            assert site.client.compile(wasm.adder(tag)).header.origin == COMPILED
        eventually(lambda: site.client.stats().redis_detail, "nobody says that it is full")
        assert site.client.stats().redis_up
        assert site.daemon.metric("redis_up") == 1
        settled(site.client)
        assert site.daemon.metric("redis_dropped_writes_total") > dropped
        assert site.daemon.metric("tier_stores_total", outcome="error", tier="redis") > failed
        assert site.daemon.log.count('"tier takes no writes"') == 1
    finally:
        site.server.config_set("maxmemory", "0")
    deadline = time.monotonic() + 60
    for tag in range(20, 200):
        header = site.client.compile(wasm.adder(tag)).header
        settled(site.client)
        if names_of(site.server, header.module_sha256):
            break
        assert time.monotonic() < deadline, "it never writes again"
        time.sleep(0.5)
    site.forget()
    assert site.client.compile(header.module_sha256).header.origin == REDIS
    eventually(lambda: not site.client.stats().redis_detail, "it still counts as full")
