"""The tiers of one daemon: what memory keeps, what Redis gets and when, and what an evict takes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import redis
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2, types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.stored_values import names_of
from tests.servers.redis_server import RedisServer, binary_of, redis_server

MEMORY, HOST_STORE, REDIS, COMPILED = (
    types_pb2.ORIGIN_MEMORY,
    types_pb2.ORIGIN_HOST_STORE,
    types_pb2.ORIGIN_REDIS,
    types_pb2.ORIGIN_COMPILED,
)
TTL_S = 1000
LIMIT_BYTES = 64 * 1024
[ENGINE] = ONE_ENGINE


def settled(client: Client) -> None:
    """Wait until nothing waits to be written."""
    eventually(lambda: not client.stats().pending_writes, "a write waits")


@dataclass(frozen=True)
class Site:
    """A daemon with a short queue of writes, and its Redis."""

    daemon: RedisDaemon
    client: Client
    running: RedisServer
    server: redis.Redis

    def stored(self, module: bytes) -> tuple[set[bytes], set[bytes]]:
        """Have a module compiled and stored; return the names of its and its artifact's values."""
        self.client.load(module)
        settled(self.client)
        before = names_of(self.server, wasm.digest(module))
        assert self.client.compile(module).header.origin == COMPILED
        settled(self.client)
        made = names_of(self.server, wasm.digest(module)) - before
        assert before
        assert made
        return before, made

    def lives_on(self, names: set[bytes]) -> bool:
        """Return whether no value is about to expire."""
        return all(TTL_S - 100 < self.server.ttl(name) <= TTL_S for name in names)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Have the server answer nothing."""
        self.running.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.running.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def running_site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        environ = {
            "WASMKILN_REDIS_URL": running.url,
            "WASMKILN_CACHE_TTL_S": str(TTL_S),
            # So that tests can have look-ups wait, also where the machine is busy.
            "WASMKILN_REDIS_TIMEOUT_S": "10",
            # As much as one module and one artifact may wait to be written.
            "WASMKILN_MAX_MODULE_BYTES": "24KiB",
            "WASMKILN_MAX_ARTIFACT_BYTES": "26KiB",
        }
        state = fresh_state(folder / "state", engines=ONE_ENGINE)
        daemon = stack.enter_context(RedisDaemon(state, environ=environ))
        client = stack.enter_context(daemon.client(timeout_s=120))
        server = stack.enter_context(redis.Redis.from_url(running.url))
        yield Site(daemon, client, running, server)


@pytest.fixture
def site(running_site: Site) -> Site:
    """The site, with nothing in any tier."""
    settled(running_site.client)
    running_site.client.evict(all=True)
    return running_site


def test_values_carry_prefix_and_digest_and_what_is_used_lives_on(site: Site) -> None:
    module, made = site.stored(wasm.adder(1))
    alone = wasm.adder(2)
    site.client.load(alone)
    settled(site.client)
    unused = names_of(site.server, wasm.digest(alone))
    assert all(name.startswith(b"wasm:") for name in site.server.scan_iter())
    assert site.lives_on(module | made | unused)
    for name in module | made | unused:
        site.server.expire(name, 100)
    assert site.client.compile(wasm.adder(1)).header.origin == MEMORY
    eventually(lambda: site.lives_on(module | made), "what is used expires")
    assert all(site.server.ttl(name) <= 100 for name in unused)
    # A module that nothing was compiled of is used when it is looked up.
    assert site.client.load(alone).already_loaded
    eventually(lambda: site.lives_on(unused), "what is looked up expires")
    # And Redis gets again what it has lost.
    site.server.flushall()
    assert site.client.load(alone).already_loaded
    eventually(lambda: names_of(site.server, wasm.digest(alone)) == unused, "it is not put back")


def test_load_asks_whether_a_module_is_there_and_reads_none(site: Site) -> None:
    def reads() -> int:
        return int(site.server.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"])

    module = wasm.adder(7)
    site.client.load(module)
    settled(site.client)
    site.client.evict(all=True, tier="memory")
    before = reads()
    assert site.client.load(module).already_loaded
    assert reads() == before


def test_callers_of_one_value_share_one_look_up(site: Site) -> None:
    site.stored(wasm.adder(2))
    site.client.evict(all=True, tier="memory")
    hit = {"outcome": "hit", "tier": "redis", "what": "artifact"}
    before = site.daemon.metric("tier_lookups_total", **hit)
    with ThreadPoolExecutor(6) as callers:
        with site.hanging():
            calls = [callers.submit(site.client.compile, wasm.adder(2)) for _ in range(6)]
            eventually(lambda: site.daemon.metric("calls") == 6, "the calls do not come")
        found = [call.result() for call in calls]
    assert len({artifact.bytes for artifact in found}) == 1
    assert COMPILED not in {artifact.header.origin for artifact in found}
    assert site.daemon.metric("tier_lookups_total", **hit) == before + 1


def test_an_evict_takes_from_redis_what_it_names(site: Site) -> None:
    one, other = wasm.adder(4), wasm.adder(5)
    (_, of_one), (_, of_other) = site.stored(one), site.stored(other)
    foreign = {b"other:1": b"a", b"wasmx:2": b"b", b"wasm": b"c"}
    site.server.mset(foreign)
    gone = site.client.evict(wasm.digest(one), tier="redis")
    assert (gone.artifacts, gone.modules, list(gone.unreachable_tiers)) == (1, 1, [])
    assert gone.bytes
    assert not site.server.exists(*of_one)
    assert site.server.exists(*of_other) == len(of_other)
    assert site.client.compile(one).header.origin == MEMORY
    gone = site.client.evict(engine=ENGINE, tier="redis")
    assert (gone.artifacts, gone.modules) == (1, 0)
    assert not site.server.exists(*of_other)
    site.client.evict(all=True, tier="memory")
    # The module is still there, and need not be sent.
    assert site.client.compile(wasm.digest(other)).header.origin == COMPILED
    settled(site.client)
    gone = site.client.evict(all=True, tier="redis")
    assert (gone.artifacts, gone.modules) == (1, 1)
    assert not site.server.exists(*of_one, *of_other)
    assert site.client.compile(other).header.origin == MEMORY
    assert site.server.mget(*foreign) == [*foreign.values()]
    site.server.delete(*foreign)


def test_no_answer_waits_for_a_write_and_the_newest_writes_outlast_an_outage(site: Site) -> None:
    made = []
    dropped = site.daemon.metric("redis_dropped_writes_total")
    # The queue has room for a module and an artifact that are as large as the limits allow.
    assert site.client.compile(wasm.with_data(24_500, 9)).header.size_bytes > 24_500
    settled(site.client)
    assert site.daemon.metric("redis_dropped_writes_total") == dropped
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
    site.client.evict(all=True, tier="memory")
    assert site.client.compile(wasm.with_data(20_000, 7)).header.origin == REDIS
    assert site.client.compile(wasm.with_data(20_000, 0)).header.origin == COMPILED


small = serving(
    *ONE_ENGINE,
    flags=("--redis-url", "none", "--memory-bytes", str(LIMIT_BYTES)),
    kind=RedisDaemon,
)
"""A daemon with a small memory tier, and no other one."""


@pytest.fixture
def client(small: RedisDaemon) -> Iterator[Client]:
    """A client of that daemon, which holds nothing."""
    with small.client() as one:
        one.evict(all=True)
        yield one


def memory(client: Client) -> module_service_pb2.TierStats:
    """Return what Stats says of the tier, which keeps its limit."""
    [tier] = [each for each in client.stats().tiers if each.tier == "memory"]
    assert 0 <= tier.bytes <= tier.limit_bytes == LIMIT_BYTES
    return tier


def origin(client: Client, module: bytes) -> types_pb2.Origin:
    return client.compile(module).header.origin


def test_the_least_recently_used_goes_first(client: Client) -> None:
    evictions = memory(client).evictions
    used = wasm.adder(0)
    client.compile(used)
    others: list[bytes] = []
    while memory(client).evictions < evictions + 6:
        others.append(wasm.adder(1 + len(others)))
        assert origin(client, others[-1]) == COMPILED
        assert origin(client, used) == MEMORY
    for module in reversed(others[-3:]):
        assert origin(client, module) == MEMORY
    assert origin(client, used) == MEMORY
    assert origin(client, others[0]) == COMPILED


def test_what_can_never_fit_or_is_not_there_evicts_nothing(client: Client) -> None:
    held = [wasm.adder(tag) for tag in range(4)]
    for module in held:
        client.compile(module)
    before = memory(client)
    for _ in range(2):
        found = client.compile(wasm.with_data(2 * LIMIT_BYTES, 1))
        assert found.header.origin == COMPILED
        assert found.header.size_bytes > LIMIT_BYTES
    for gone in (
        client.evict("0" * 64, tier="memory"),
        client.evict(engine="wasmtime-1.0.0", tier="memory"),
    ):
        assert (gone.artifacts, gone.modules, gone.bytes) == (0, 0, 0)
    after = memory(client)
    assert (after.entries, after.bytes) == (before.entries, before.bytes)
    assert after.evictions == before.evictions
    assert {origin(client, module) for module in held} == {MEMORY}
    gone = client.evict(wasm.digest(held[0]))
    assert (gone.artifacts, gone.modules) == (1, 1)
    assert after.bytes - memory(client).bytes == gone.bytes
    missing = client.find_missing(map(wasm.digest, held))
    assert [key.module_sha256 for key in missing] == [wasm.digest(held[0])]
    gone = client.evict(engine=ENGINE)
    assert (gone.artifacts, gone.modules) == (3, 0)
    # The modules are still there, and need not be sent.
    assert client.compile(wasm.digest(held[1])).header.origin == COMPILED
