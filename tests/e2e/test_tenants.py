"""Tenants that attack each other: nothing of one is reachable from another's namespace."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import redis
from wasmkiln import (
    Client,
    CompileTimeout,
    CredentialsInvalid,
    HostFileUnavailable,
    ModuleNotLoaded,
    ModuleQuarantined,
)
from wasmkiln.v1.types_pb2 import Origin

from tests.e2e import wasm
from tests.e2e.bearers import add_token, token_command
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, run, wasmkilnd
from tests.e2e.tenancy import ALL, NAMESPACES, House, house
from tests.servers.redis_server import binary_of, redis_server

MEMORY, COMPILED = Origin.ORIGIN_MEMORY, Origin.ORIGIN_COMPILED
HOST_STORE, REDIS = Origin.ORIGIN_HOST_STORE, Origin.ORIGIN_REDIS
SLOW = wasm.nested_blocks(1_000_000)
INVALID = wasm.busy_functions(3, last_is_broken=True)


@pytest.fixture
def valkey(tmp_path: Path, engines: object) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


@pytest.fixture(scope="module")
def tenants(engines: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The tenants of tests that say nothing of all that a daemon has or has done."""
    folder = tmp_path_factory.mktemp("tenants")
    with (
        redis_server(binary_of("valkey"), folder / "server") as running,
        house(folder / "state", REDIS_URL=running.url, COMPILE_CPU_S="1") as tenants,
    ):
        yield tenants


@pytest.fixture
def fresh_tenants(tmp_path: Path, valkey: str) -> Iterator[House]:
    with house(tmp_path / "state", REDIS_URL=valkey) as running:
        yield running


def test_a_digest_is_no_key_to_what_another_tenant_uploaded_or_compiled(tenants: House) -> None:
    a, b, ops = (tenants.client(who) for who in ("a", "b", "ops"))
    module = wasm.adder(1)
    sha256 = a.load(module).sha256
    assert a.compile(sha256).header.origin == COMPILED
    written_everywhere(a)
    for other in (b, ops):
        with pytest.raises(ModuleNotLoaded):
            other.compile(sha256)
        with pytest.raises(ModuleNotLoaded):
            other.compile(sha256, skip_cache_lookup=True)
        with pytest.raises((ModuleNotLoaded, HostFileUnavailable)):
            other.host_file(sha256)
        assert [key.module_sha256 for key in other.find_missing([sha256])] == [sha256]
        assert not other.load(module).already_loaded
        # Having the module is no proof of having compiled it.
        assert other.compile(sha256).header.origin == COMPILED
        assert not other.find_missing([sha256])
    assert a.compile(sha256).header.origin == MEMORY
    assert a.load(module).already_loaded


def test_the_tiers_below_memory_are_no_way_round(tmp_path: Path, valkey: str) -> None:
    """Keys, paths and the cache command are about one namespace; the default one has no name."""
    state, made = tmp_path / "one", {}
    with house(state, REDIS_URL=valkey) as first:
        for number, who in enumerate(NAMESPACES):
            client = first.client(who)
            made[who] = client.compile(wasm.adder(20 + number)).header
            assert made[who].origin == COMPILED
            written_everywhere(client)
        tokens = first.tokens
    with redis.Redis.from_url(valkey) as server:
        names = {name.decode() for name in server.keys("*")}
    store = state / "host_store"
    for who, header in made.items():
        space, sha256 = NAMESPACES[who], header.module_sha256
        prefix = f"wasm:ns:{space}:" if space else "wasm:"
        ours = f"{{{sha256}}}:{header.engine.id}:{header.fingerprint}"
        assert f"{prefix}3:compiled:{ours}" in names
        mine = [name for name in names if sha256 in name]
        assert all(name.startswith(f"{prefix}3:") for name in mine)
        root = store / "ns" / space if space else store
        assert (root / header.fingerprint / sha256[:2] / sha256 / "artifact").is_file()
        assert (root / "engines.json").is_file()
        flags = ("--namespace", space) if space else ()
        for tier in ("redis", "host_store"):
            words = ("--tier", tier, "--state-dir", str(state), "--redis-url", valkey, *flags)
            listed = wasmkilnd("cache", "ls", "--json", *words)
            assert {json.loads(line)["module"] for line in listed.splitlines()} == {sha256}
    assert len(list(store.rglob("artifact"))) == 3
    refused = run(WASMKILND, "cache", "ls", "--namespace", "../up")
    assert (refused.returncode, "expected 1 to 63" in refused.stderr) == (2, True)

    # The same daemon again, whose memory is empty; and another one, without their host stores.
    sha256 = made["a"].module_sha256
    with house(state, tokens=tokens, REDIS_URL=valkey) as again:
        no_way_round(again, sha256, HOST_STORE)
    with house(tmp_path / "two", REDIS_URL=valkey, HOST_STORE_BYTES="0") as second:
        no_way_round(second, sha256, REDIS)


def no_way_round(tenants: House, sha256: str, origin: Origin) -> None:
    for other in ("b", "ops"):
        with pytest.raises(ModuleNotLoaded):
            tenants.client(other).compile(sha256)
    assert tenants.client("a").compile(sha256).header.origin == origin


def test_an_eviction_reaches_nothing_of_others(fresh_tenants: House, valkey: str) -> None:
    clients = [fresh_tenants.client(who) for who in ("a", "b", "ops")]
    module = wasm.adder(6)
    sha256 = wasm.digest(module)
    for client in clients:
        assert client.compile(module).header.origin == COMPILED
        written_everywhere(client)
    for client in clients:
        removed = client.evict(all=True)
        assert (removed.modules, list(removed.unreachable_tiers)) == (2, [])
        others = [each for each in clients if each is not client]
        assert [each.compile(sha256).header.origin for each in others] == [MEMORY, MEMORY]
        with pytest.raises(ModuleNotLoaded):
            client.compile(sha256)
        assert client.compile(module).header.origin == COMPILED
        written_everywhere(client)
    clients[0].evict(sha256)
    assert clients[1].compile(sha256).header.origin == MEMORY
    with redis.Redis.from_url(valkey) as server:
        left = {name.decode() for name in server.keys(f"*compiled:*{sha256}*")}
    assert {name.partition("compiled:")[0] for name in left} == {"wasm:3:", "wasm:ns:team-b:3:"}


def test_the_quarantine_of_one_tenant_refuses_nobody_else(tenants: House) -> None:
    a, b, ops = (tenants.client(who) for who in ("a", "b", "ops"))
    with pytest.raises(CompileTimeout):
        a.compile(SLOW)
    with pytest.raises(ModuleQuarantined):
        a.compile(SLOW)
    assert [one.module_sha256 for one in a.quarantined().modules] == [wasm.digest(SLOW)]
    assert a.stats().quarantined_modules == 1
    for other in (b, ops):
        assert not other.quarantined().modules
        assert other.release(all=True).released == 0
    assert b.stats().quarantined_modules == 0
    # Not refused: compiled, and found to be slow for itself.
    with pytest.raises(CompileTimeout):
        b.compile(SLOW)
    assert b.release(wasm.digest(SLOW)).released == 1
    with pytest.raises(ModuleQuarantined):
        a.compile(SLOW)


def test_pins_are_those_of_one_tenant(tenants: House) -> None:
    a, b, ops = (tenants.client(who) for who in ("a", "b", "ops"))
    dear = wasm.constant(815)
    digest = wasm.digest(dear)
    a.compile(dear)
    a.pin(digest)
    for other in (b, ops):
        assert not other.pins().pins
        with pytest.raises(ModuleNotLoaded):
            other.pin(digest)
        assert not other.unpin(digest).removed
    b.compile(dear)
    assert b.evict(all=True).pinned == 0
    assert a.compile(digest).header.origin == MEMORY
    assert [pin.module_sha256 for pin in a.pins().pins] == [digest]
    assert (a.stats().pins, b.stats().pins, ops.stats().pins) == (1, 0, 1)
    assert a.unpin(digest).removed


def test_what_an_engine_says_of_a_module_is_asked_each_time(tenants: House) -> None:
    def refused(who: str) -> int:
        with pytest.raises(grpc.RpcError) as failure:
            tenants.compile_bytes(who, INVALID)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        compiles = tenants.client(who).stats().compiles
        return sum(row.count for row in compiles if row.outcome == "module_invalid")

    assert [refused("a"), refused("a"), refused("b"), refused("b")] == [1, 2, 1, 2]


def test_tenants_share_no_flight_and_see_none_of_each_others_figures(fresh_tenants: House) -> None:
    module = wasm.busy_functions(2000)
    clients = [fresh_tenants.client(who) for who in ("a", "a", "a", "b", "b")]
    with ThreadPoolExecutor(len(clients)) as callers:
        made = list(callers.map(lambda client: client.compile(module).header.origin, clients))
    # Of each tenant's calls one compiles, whatever the other tenant's do.
    assert (made[:3].count(COMPILED), made[3:].count(COMPILED)) == (1, 1)
    of_a, of_b = clients[0].stats(), clients[3].stats()
    assert (of_a.namespace, of_b.namespace) == ("team-a", "team-b")
    for stats in (of_a, of_b):
        assert sum(row.count for row in stats.compiles) == 1
        assert (len(stats.workers), stats.busy_workers, stats.queue_depth) == (0, 0, 0)
        [memory] = [tier for tier in stats.tiers if tier.tier == "memory"]
        assert memory.entries == 2
    whole = fresh_tenants.client("ops").stats()
    assert whole.namespace == ""
    assert sum(row.count for row in whole.compiles) == 2
    [memory] = [tier for tier in whole.tiers if tier.tier == "memory"]
    assert (memory.entries, len(whole.workers)) == (4, 1)
    other = wasm.adder(7)
    clients[0].compile(other)
    assert sum(row.count for row in clients[3].stats().compiles) == 1


def test_namespaces_come_and_go_while_the_daemon_runs(tmp_path: Path, valkey: str) -> None:
    state = tmp_path / "state"
    with house(state, REDIS_URL=valkey) as tenants:
        daemon, a = tenants.daemon, tenants.client("a")
        module = wasm.adder(9)
        assert a.compile(module).header.origin == COMPILED
        text = add_token(state, "c", *ALL, namespace="team-c")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "team-c" in daemon.log, "team-c is opened")
        with Client(daemon.address, token=text) as c:
            with pytest.raises(ModuleNotLoaded):
                c.compile(wasm.digest(module))
            assert c.compile(module).header.origin == COMPILED
            written_everywhere(c)
            # Its part of the memory is one of four now.
            limits = [tier.limit_bytes for tier in c.stats().tiers if tier.tier == "memory"]
            assert limits == [tier.limit_bytes for tier in a.stats().tiers if tier.tier == "memory"]
            token_command(state, "revoke", "c")
            eventually(lambda: "namespace closed" in daemon.log, "team-c is closed")
            with pytest.raises(CredentialsInvalid):
                c.compile(module)
        assert a.compile(module).header.origin == MEMORY
        # What it has stored waits for it.
        opened = daemon.log.count("namespace opened")
        text = add_token(state, "c", *ALL, namespace="team-c")
        eventually(lambda: daemon.log.count("namespace opened") > opened, "team-c is back")
        with Client(daemon.address, token=text) as c:
            assert c.compile(wasm.digest(module)).header.origin == HOST_STORE


def test_more_namespaces_than_a_daemon_serves_are_refused(tmp_path: Path, engines: object) -> None:
    policy = tmp_path / "state-policy.toml"
    rules = [f'[[rule]]\nidentity = "token:{at}"\nnamespace = "n{at}"\n' for at in range(257)]
    with house(tmp_path / "state", policy="[quota.q]\n") as tenants:
        a = tenants.client("a")
        assert a.compile(wasm.adder(30)).header.origin == COMPILED
        policy.write_text("".join(rules))
        tenants.daemon.process.send_signal(signal.SIGHUP)
        line = tenants.daemon.wait_for_log("cannot reload: what cannot be used stays as it was")
        assert "one daemon serves 256" in line
        assert a.compile(wasm.adder(30)).header.origin == MEMORY


def written_everywhere(client: Client) -> None:
    """Wait until nothing waits to be written to Redis or the host store."""

    def written() -> bool:
        stats = client.stats()
        [store] = [tier for tier in stats.tiers if tier.tier == "host_store"]
        return stats.pending_writes == 0 and store.put_latency.count > 0

    eventually(written, "all writes are done")


def test_a_tenant_that_floods_its_tiers_costs_another_no_hit(tmp_path: Path, valkey: str) -> None:
    with house(
        tmp_path / "state", REDIS_URL=valkey, MEMORY_BYTES="12MiB", HOST_STORE_BYTES="48MiB"
    ) as tenants:
        victim, other = tenants.client("a"), tenants.client("b")
        hot = [wasm.constant(number) for number in range(20)]
        for module in hot:
            victim.compile(module)
        for number in range(20):
            other.compile(wasm.many_functions(3000, 1000 + number))
            other.load(wasm.with_data(2_000_000, number))
        [memory] = [tier for tier in other.stats().tiers if tier.tier == "memory"]
        assert memory.evictions > 0
        assert not victim.find_missing([wasm.digest(module) for module in hot])
        for module in hot:
            assert victim.compile(wasm.digest(module)).header.origin == MEMORY
        [memory] = [tier for tier in victim.stats().tiers if tier.tier == "memory"]
        assert memory.evictions == 0


def test_the_limit_of_the_host_store_holds_for_what_namespaces_left(
    tmp_path: Path, engines: object
) -> None:
    """Four namespaces come and go, and each leaves what it had."""
    state, limit_bytes = tmp_path / "state", 2 << 20
    store = state / "host_store"

    def used_bytes() -> int:
        used = 0
        for file in store.rglob("artifact*"):
            with contextlib.suppress(FileNotFoundError):  # It makes room just now.
                used += file.stat().st_blocks * 512
        return used

    def left() -> int:
        return len(list((store / "ns").glob("guest-*/*/*/*")))

    with house(state, REDIS_URL="none", HOST_STORE_BYTES=str(limit_bytes)) as tenants:
        daemon, tokens, ops = tenants.daemon, tenants.tokens, tenants.client("ops")
        file = state / "access" / "tokens.json"
        given = file.read_text()
        names = [f"guest-{number}" for number in range(4)]
        guests = [add_token(state, name, *ALL, namespace=name) for name in names]
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.log.count("namespace opened") == 6, "none is opened")
        for number, token in enumerate(guests):
            with Client(daemon.address, token=token, host_store_dir="none") as guest:
                for tag in range(2):
                    guest.compile(wasm.with_data(80_000, 10 * number + tag))
                written_everywhere(guest)
        file.write_text(given)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.log.count("namespace closed") == 4, "none is closed")
        assert used_bytes() <= limit_bytes
        before = left()
        assert before > 4
        for who in ("ops", "a", "b"):
            client = tenants.client(who)
            for tag in range(6):
                client.compile(wasm.with_data(100_000, 1000 + tag))
            written_everywhere(client)
        assert used_bytes() <= limit_bytes
        assert left() < before  # They made room, and those that are served did not:
        ops.evict(all=True, tier="memory")
        newest = wasm.digest(wasm.with_data(100_000, 1005))
        assert ops.compile(newest).header.origin == HOST_STORE
    with house(state, tokens=tokens, REDIS_URL="none", HOST_STORE_BYTES="1000"):
        eventually(lambda: used_bytes() == left() == 0, "a restart does not reclaim it")
