"""The memory tier by what Stats and metrics say of it: its sums, its limit, and what goes first."""

from __future__ import annotations

import random
import urllib.request
from collections.abc import Iterator

import pytest
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2, types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.test_cache import COMPILED, MEMORY

LIMIT_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def daemon(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisDaemon]:
    """A daemon with a small memory tier, and no other one."""
    state = fresh_state(tmp_path_factory.mktemp("memory") / "state", engines=ONE_ENGINE)
    flags = ("--redis-url", "none", "--memory-bytes", str(LIMIT_BYTES), "--workers", "1")
    with RedisDaemon(state, flags) as running:
        yield running


@pytest.fixture
def client(daemon: RedisDaemon) -> Iterator[Client]:
    """A client of the daemon, which holds nothing."""
    with daemon.client() as one:
        one.evict(everything=True)
        yield one


def memory(daemon: RedisDaemon, client: Client) -> module_service_pb2.TierStats:
    """Return what Stats says of the tier, which metrics say too and which keeps its limit."""
    [tier] = [each for each in client.stats().tiers if each.tier == "memory"]
    with urllib.request.urlopen(f"{daemon.admin_url}/metrics") as answer:
        page = answer.read().decode().splitlines()
    for name, value in {
        "entries": tier.entries,
        "bytes": tier.bytes,
        "limit_bytes": tier.limit_bytes,
        "evictions_total": tier.evictions,
    }.items():
        [line] = [
            each for each in page if each.startswith(f'wasmkiln_tier_{name}{{tier="memory"}}')
        ]
        assert float(line.rpartition(" ")[2]) == value
    assert tier.limit_bytes == LIMIT_BYTES
    assert 0 <= tier.bytes <= LIMIT_BYTES
    assert (tier.bytes == 0) == (tier.entries == 0)
    return tier


def origin(client: Client, module: bytes) -> types_pb2.Origin:
    return client.compile(module).header.origin


def test_the_sums_are_right_after_every_step(daemon: RedisDaemon, client: Client) -> None:
    dice = random.Random(1)
    for _ in range(20):
        before = memory(daemon, client)
        module = wasm.with_data(dice.choice((10, 1000, 9000, 30_000)), dice.randrange(4))
        if dice.random() < 0.3:
            gone = client.evict(module_sha256=wasm.digest(module))
            after = memory(daemon, client)
            assert before.entries - after.entries == gone.artifacts + gone.modules
            assert before.bytes - after.bytes == gone.bytes
            assert after.evictions == before.evictions  # Those make room for others.
        else:
            made = client.compile(module).header
            after = memory(daemon, client)
            if made.origin == MEMORY:
                assert (after.entries, after.bytes) == (before.entries, before.bytes)
            elif after.evictions == before.evictions:
                assert after.entries > before.entries
                assert after.bytes >= before.bytes + made.size_bytes
    before = memory(daemon, client)
    assert before.evictions
    gone = client.evict(everything=True)
    assert (gone.artifacts + gone.modules, gone.bytes) == (before.entries, before.bytes)
    assert memory(daemon, client).entries == 0


def test_what_is_compiled_anew_is_counted_once(daemon: RedisDaemon, client: Client) -> None:
    client.compile(wasm.adder(1))
    once = memory(daemon, client)
    for _ in range(3):
        header = client.compile(wasm.adder(1), skip_cache_lookup=True).header
        assert header.origin == COMPILED
    again = memory(daemon, client)
    assert again.entries == once.entries
    # The time that the compile took is part of it, and has more digits or fewer.
    assert abs(again.bytes - once.bytes) < 100


def test_the_least_recently_used_goes_first(daemon: RedisDaemon, client: Client) -> None:
    evictions = memory(daemon, client).evictions
    used = wasm.adder(0)
    client.compile(used)
    others: list[bytes] = []
    while memory(daemon, client).evictions < evictions + 6:
        others.append(wasm.adder(1 + len(others)))
        assert origin(client, others[-1]) == COMPILED
        assert origin(client, used) == MEMORY
    for module in reversed(others[-3:]):
        assert origin(client, module) == MEMORY
    assert origin(client, used) == MEMORY
    assert origin(client, others[0]) == COMPILED


def test_what_can_never_fit_evicts_nothing(daemon: RedisDaemon, client: Client) -> None:
    held = [wasm.adder(tag) for tag in range(4)]
    for module in held:
        client.compile(module)
    before = memory(daemon, client)
    large = wasm.with_data(2 * LIMIT_BYTES, 1)
    for _ in range(2):
        found = client.compile(large)
        assert found.header.origin == COMPILED
        assert found.header.size_bytes > LIMIT_BYTES
    after = memory(daemon, client)
    assert (after.entries, after.bytes) == (before.entries, before.bytes)
    assert after.evictions == before.evictions
    assert {origin(client, module) for module in held} == {MEMORY}


def test_an_evict_takes_what_it_names_and_nothing_else(daemon: RedisDaemon, client: Client) -> None:
    one, other = wasm.adder(1), wasm.adder(2)
    client.compile(one)
    client.compile(other)
    before = memory(daemon, client)
    for gone in (
        client.evict(module_sha256="0" * 64, tier="memory"),
        client.evict(engine="wasmtime-1.0.0", tier="memory"),
    ):
        assert (gone.artifacts, gone.modules, gone.bytes) == (0, 0, 0)
    assert memory(daemon, client).bytes == before.bytes
    gone = client.evict(module_sha256=wasm.digest(one))
    assert (gone.artifacts, gone.modules) == (1, 1)
    assert [key.module_sha256 for key in client.find_missing(map(wasm.digest, (one, other)))] == [
        wasm.digest(one)
    ]
    gone = client.evict(engine=ONE_ENGINE[0])
    assert (gone.artifacts, gone.modules) == (1, 0)
    # The module is still there, and need not be sent.
    assert client.compile(wasm.digest(other)).header.origin == COMPILED
