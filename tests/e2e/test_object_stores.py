"""The tier on each kind of object store: what is there outlives all else, and is never trusted."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from google.protobuf.json_format import MessageToJson
from wasmkiln import Client, PublicKey
from wasmkiln.v1.types_pb2 import Origin

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed, run
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, rejected
from tests.e2e.tenancy import House, give_tokens
from tests.faults.proxy import GOOD, Line, Proxy
from tests.servers.object_stores import KINDS_OF_OBJECT_STORES, PREFIX, SECRET, ObjectStore
from tests.servers.redis_server import RedisServer, binary_of, redis_server

COMPILED, MEMORY = Origin.ORIGIN_COMPILED, Origin.ORIGIN_MEMORY
REDIS, OBJECTS = Origin.ORIGIN_REDIS, Origin.ORIGIN_OBJECT_STORE
# From 20 KB to 1.2 MB.
MODULES = [wasm.adder(1), wasm.many_functions(2_000, tag=1), wasm.with_data(1_200_000, 1)]
WASMER, WASMTIME = TWO_ENGINES
AZURITE = pytest.param("azurite", marks=pytest.mark.npm)
# What a directory does more is in test_object_store.py, and moto is asked as SeaweedFS is.
in_buckets = pytest.mark.parametrize("running", ["seaweedfs", AZURITE], indirect=True)
NAME = re.compile(r"wasm/3/(?:module/[0-9a-f]{64}|compiled/[0-9a-f]{64}/[\w.-]+/[0-9a-f]{64})")


@dataclass
class Site:
    """A store, and a Redis; and daemons that share keys and nothing else."""

    kind: str
    folder: Path
    store: ObjectStore
    server: RedisServer
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def public(self) -> PublicKey:
        """The key that the daemons sign with."""
        return KeyDirectory(self.folder / "keys").pair().public

    def state(self, *engines: str, **options: Any) -> Path:
        """Make a new state directory, with an empty host store."""
        return fresh_state(
            self.folder / f"d{next(self._numbers)}", engines=engines or ONE_ENGINE, **options
        )

    def environ(self, **settings: str) -> dict[str, str]:
        """Return the variables of a daemon on the store, and on Redis unless it has another."""
        given = {"REDIS_URL": self.server.url, "OBJECT_STORE_TIMEOUT_S": "20", **settings}
        ours = {f"WASMKILN_{name}": value for name, value in given.items()}
        return {**self.store.environment, **ours}

    @contextmanager
    def daemon(self, *engines: str, **settings: str) -> Iterator[tuple[Daemon, Client]]:
        """Run a daemon whose host store is empty at first; its client verifies what it gets."""
        with (
            Daemon(self.state(*engines), environ=self.environ(**settings)) as daemon,
            daemon.client(trusted_keys=self.public.hex, host_store_dir="none") as client,
        ):
            yield daemon, client

    def flush(self) -> None:
        """Have Redis lose all."""
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()

    def clear(self) -> None:
        """Have the store lose all, too."""
        self.flush()
        if names := self.store.names():
            self.store.delete(*names)


@pytest.fixture(scope="module", params=["directory", "seaweedfs", "moto", AZURITE])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engines: Installed
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        KINDS_OF_OBJECT_STORES[request.param](folder / "store") as store,
        redis_server(binary_of("valkey"), folder / "redis") as server,
    ):
        yield Site(request.param, folder, store, server)


@pytest.fixture
def site(running: Site) -> Site:
    """A store of each kind, and a Redis, with nothing in them."""
    running.clear()
    return running


def made_compiles(daemon: Daemon) -> float:
    with daemon.client() as client:
        return sum(each.count for each in client.stats().compiles)


def settled(client: Client) -> None:
    """Wait until nothing waits to be written, to no tier."""

    def written() -> bool:
        stats = client.stats()
        return not stats.pending_writes and not stats.pending_object_writes

    eventually(written, "something still waits to be written")
    assert client.stats().dropped_object_writes == 0


def stored(client: Client, *modules: bytes, engine: str = "") -> dict[str, bytes]:
    """Compile until all is stored; return the artifacts by the module's digest."""
    made = {wasm.digest(each): client.compile(each, engine=engine).bytes for each in modules}
    settled(client)
    return made


def test_a_fleet_that_lost_all_else_compiles_nothing(site: Site) -> None:
    with site.daemon() as (_, client):
        began_s = time.monotonic()
        client.compile(MODULES[1])
        compile_s = time.monotonic() - began_s
        made = stored(client, *MODULES)
    names = site.store.names()
    assert len(names) == 2 * len(MODULES)
    assert all(map(NAME.fullmatch, names))
    site.flush()
    with ExitStack() as stack:
        fleet = [stack.enter_context(site.daemon()) for _ in range(3)]
        for number, (daemon, client) in enumerate(fleet):
            began_s = time.monotonic()
            found = client.compile(wasm.digest(MODULES[1]))
            first_s = time.monotonic() - began_s
            if not number:
                print(f"\n{site.kind}: compiled in {compile_s:.3f} s, first hit {first_s:.3f} s")
                assert found.header.origin == OBJECTS
            for digest, artifact in made.items():
                found = client.compile(digest)
                # Redis has again what one of them has read.
                origins = {REDIS, OBJECTS} if number else {OBJECTS}
                assert found.header.origin in {*origins, MEMORY}
                assert found.bytes == artifact
            settled(client)
            assert not client.find_missing(list(made))
            assert made_compiles(daemon) == 0
            assert rejected(daemon) == {}
        daemon, client = fleet[0]
        # The module came along, and so did the file of the host store.
        digest = wasm.digest(MODULES[0])
        assert client.compile(digest, cpu="baseline").header.origin == COMPILED
        with daemon.client() as mapping:
            assert Path(mapping.host_file(digest)).read_bytes() == made[digest]
        with redis.Redis.from_url(site.server.url) as server:
            assert {name for name in server.scan_iter("*compiled:*") if digest in str(name)}


def test_who_writes_second_changes_nothing(site: Site) -> None:
    modules = [wasm.adder(tag) for tag in range(10, 18)]
    with ExitStack() as stack:
        pair = [stack.enter_context(site.daemon(REDIS_URL="none")) for _ in range(2)]
        with ThreadPoolExecutor(2) as callers:
            list(callers.map(lambda each: stored(each[1], *modules), pair))
        values = site.store.values()
        assert len(values) == 2 * len(modules)
        for _, client in pair:
            for module in modules:
                client.compile(module, skip_cache_lookup=True)
            settled(client)
            assert client.stats().object_store_detail == ""
    assert site.store.values() == values


@in_buckets
def test_what_is_evicted_is_gone_there_too(site: Site) -> None:
    one, two, pinned = (wasm.digest(module) for module in (MODULES[0], MODULES[1], wasm.adder(2)))
    with site.daemon(*TWO_ENGINES) as (_, client):
        for engine in TWO_ENGINES:
            stored(client, MODULES[0], MODULES[1], wasm.adder(2), engine=engine)
        client.pin(pinned)
        client.evict(one)
        assert not site.store.names(one)
        assert len(site.store.names(two)) == 3
        client.evict(engine=WASMTIME)
        eventually(lambda: not site.store.names(f"{two}/{WASMTIME}"), "an engine's stay")
        assert len(site.store.names(f"{two}/{WASMER}")) == 1
        assert len(site.store.names(pinned)) == 3
        assert client.compile(MODULES[1], engine="wasmtime").header.origin == COMPILED
        client.evict(all=True)
        eventually(lambda: len(site.store.names()) == 3, "not all that is not pinned is gone")
        assert site.store.names(pinned) == site.store.names()


@in_buckets
def test_each_namespace_has_its_own_part(site: Site) -> None:
    state = site.state()
    tokens = give_tokens(state)
    with (
        Daemon(state, environ=site.environ()) as daemon,
        closing(House(daemon, tokens)) as tenants,
    ):
        a, b, ops = (tenants.client(who) for who in ("a", "b", "ops"))
        artifacts = [client.compile(MODULES[0]) for client in (a, b, ops)]
        assert {each.header.origin for each in artifacts} == {COMPILED}
        for client in (a, b, ops):
            settled(client)
        names = site.store.names(wasm.digest(MODULES[0]))
        parts = {name[: name.index("3/")] for name in names}
        assert (len(names), len(parts)) == (6, 3)
        site.flush()
        a.evict(wasm.digest(MODULES[0]))
        assert len(site.store.names(wasm.digest(MODULES[0]))) == 4


@in_buckets
def test_a_tier_is_only_read_or_only_written_where_that_is_wanted(site: Site) -> None:
    module, other = MODULES[0], wasm.adder(3)
    with site.daemon(REDIS_URL="none", OBJECT_STORE_MODE="write-only") as (_, client):
        made = stored(client, module)
    with site.daemon(REDIS_URL="none", OBJECT_STORE_MODE="write-only") as (_, client):
        assert client.compile(module).header.origin == COMPILED
    values = site.store.values()
    with site.daemon(REDIS_URL="none", OBJECT_STORE_MODE="read-only") as (_, client):
        assert client.compile(wasm.digest(module)).bytes == made[wasm.digest(module)]
        stored(client, other)
        client.evict(all=True)
    assert site.store.values() == values
    bad = {name: flipped(value, -1) for name, value in values.items()}
    site.store.put(bad)
    with site.daemon(REDIS_URL="none", OBJECT_STORE_MODE="read-only") as (daemon, client):
        for _ in range(2):
            assert client.compile(module).header.origin == COMPILED
            client.evict(all=True)
        assert rejected(daemon)
    assert site.store.values() == bad
    with site.daemon(REDIS_MODE="read-only") as (_, client):
        stored(client, other)
    with redis.Redis.from_url(site.server.url) as server:
        assert not list(server.scan_iter("*compiled:*"))
    with site.daemon(REDIS_MODE="write-only") as (_, client):
        assert client.compile(wasm.digest(other)).header.origin == OBJECTS
        settled(client)
    with site.daemon(REDIS_MODE="write-only", OBJECT_STORE_URL="none") as (_, client):
        assert client.compile(other).header.origin == COMPILED
    with site.daemon(REDIS_MODE="read-only") as (_, client):
        assert client.compile(wasm.digest(other)).header.origin == REDIS


def test_what_does_not_verify_is_counted_deleted_and_made_again(site: Site) -> None:
    with site.daemon() as (_, client):
        made = stored(client, *MODULES)
    values = site.store.values("compiled")
    names = list(values)
    lies = {
        "one bit of each": {
            name: flipped(value, len(value) // 2) for name, value in values.items()
        },
        "the last bit": {name: flipped(value, -1) for name, value in values.items()},
        "half of each": {name: value[: len(value) // 2] for name, value in values.items()},
        "nothing": dict.fromkeys(names, b""),
        "each other's": dict(zip(names[1:] + names[:1], values.values(), strict=True)),
        "words": dict.fromkeys(names, b"words"),
    }
    for what, lie in lies.items():
        site.flush()
        site.store.put({**values, **lie})
        with site.daemon() as (daemon, client):
            for digest, artifact in made.items():
                assert client.compile(digest).bytes == artifact, what
            settled(client)
            assert sum(rejected(daemon).values()) == len(lie), what
            assert made_compiles(daemon) == len(lie), what
        now = site.store.values("compiled")
        assert now.keys() == values.keys(), what
        assert not [name for name in lie if now[name] == lie[name]], what
    site.flush()
    # Nobody reads what no limit allows, nor is it anybody's to delete.
    site.store.put({name: bytes(32 * 2**20) for name in names})
    with site.daemon(MAX_ARTIFACT_BYTES="4MiB") as (daemon, client):
        for digest, artifact in made.items():
            assert client.compile(digest).bytes == artifact
        assert (made_compiles(daemon), rejected(daemon)) == (len(made), {})


def test_daemons_with_other_keys_or_another_age_leave_the_fleet_its_values(site: Site) -> None:
    alone = {"REDIS_URL": "none", "HOST_STORE_DIR": "none"}
    digests = list(map(wasm.digest, MODULES))
    with site.daemon(**alone) as (_, client):
        made = stored(client, *MODULES)
    values, artifacts = site.store.values(), site.store.names("compiled")
    strange = site.state(own_keys=True)
    with Daemon(strange, environ=site.environ(**alone)) as daemon, daemon.client() as client:
        for _ in range(2):
            assert [client.compile(each).header.origin for each in MODULES] == [COMPILED] * 3
            settled(client)
            client.evict(all=True, tier="memory")
        # Its own artifacts are nowhere, so it does not say that it has them.
        assert len(client.find_missing(digests)) == len(digests)
        assert rejected(daemon) == {"stranger": len(values)}
        assert daemon.metric("object_store_strangers") == len(values)
        with urlopen(f"{daemon.admin_url}/status.json") as told:
            assert json.load(told)["shared"]["object_store"]["strangers"] == len(values)
    assert site.store.values() == values
    time.sleep(3)
    # Whether one request or several bring the new value.
    for mode in ("read-only", "read-write"):
        about = {"VALUE_MAX_AGE_S": "3", "OBJECT_STORE_MODE": mode, **alone}
        with site.daemon(**about) as (daemon, client):
            for digest in digests:
                assert client.compile(digest).header.origin == COMPILED
                settled(client)
            assert rejected(daemon) == {"too_old": len(artifacts)}
        now = site.store.values()
        assert now.keys() == values.keys()
        changed = [name for name in artifacts if now[name] != values[name]]
        assert changed == ([] if mode == "read-only" else artifacts)
        assert all(now[name] == values[name] for name in values if name not in artifacts)
    with site.daemon(**alone) as (daemon, client):
        for digest, artifact in made.items():
            found = client.compile(digest)
            assert (found.header.origin, found.bytes) == (OBJECTS, artifact)
        assert rejected(daemon) == {}


@in_buckets
def test_a_bit_that_is_flipped_on_the_way_costs_nothing(site: Site) -> None:
    with site.daemon(REDIS_URL="none") as (_, client):
        stored(client, MODULES[0])
    values = site.store.values()
    with Proxy(site.store.port) as proxy:
        environ = {**site.environ(REDIS_URL="none"), **site.store.behind(proxy.port)}
        for value in values.values():
            for marker in (value[:8], value[-8:]):
                with Daemon(site.state(), environ=environ) as daemon, daemon.client() as client:
                    proxy.set(Line(flip_once=marker))
                    assert client.compile(wasm.digest(MODULES[0])).header.origin == OBJECTS
                    client.compile(MODULES[0], cpu="baseline")  # Reads the module.
                    assert rejected(daemon) == {}
                assert values.items() <= site.store.values().items()


@pytest.mark.parametrize("running", ["seaweedfs"], indirect=True)
def test_writes_that_nobody_answers_do_not_hold_up_others_for_minutes(site: Site) -> None:
    with Proxy(site.store.port) as proxy:
        alone = site.environ(REDIS_URL="none", OBJECT_STORE_TIMEOUT_S="1")
        environ = {**alone, **site.store.behind(proxy.port)}
        with Daemon(site.state(), environ=environ) as daemon, daemon.client() as client:
            proxy.set(Line(swallow=True, only_to=b"PUT "))
            for module in MODULES:
                client.compile(module)
            time.sleep(1)  # They are sent.
            proxy.set(GOOD)
            later = wasm.adder(2)
            client.compile(later)

            def is_there() -> bool:
                return any(f"compiled/{wasm.digest(later)}" in name for name in site.store.values())

            eventually(is_there, "writes that nobody answers hold up all others")


@pytest.mark.parametrize("running", ["directory", "seaweedfs"], indirect=True)
def test_large_values_of_a_stranger_take_the_memory_of_one(site: Site) -> None:
    modules = [wasm.adder(tag) for tag in range(30, 38)]
    with site.daemon(REDIS_URL="none") as (_, client):
        stored(client, *modules)
    size_bytes = 64 * 2**20
    for name, value in site.store.values("compiled").items():
        site.store.put({name: bytes(size_bytes - len(value)) + value})
    about = site.environ(REDIS_URL="none", MAX_ARTIFACT_BYTES="64MiB")
    with Daemon(site.state(own_keys=True), environ=about) as daemon, daemon.client() as client:
        client.compile(wasm.adder(38))
        before = daemon.memory("VmHWM")
        with ThreadPoolExecutor(len(modules)) as callers:
            found = callers.map(client.compile, modules)
            assert {each.header.origin for each in found} == {COMPILED}
        more = daemon.memory("VmHWM") - before
        print(f"\n{site.kind}: 8 values of 64 MiB, at most {more / 2**20:.0f} MiB more")
        assert more < 2 * size_bytes


@in_buckets
def test_who_is_not_let_in_serves_and_says_why_and_no_secret(site: Site) -> None:
    environ = {**site.environ(REDIS_URL="none"), **site.store.stranger}
    with Daemon(site.state(), environ=environ) as daemon, daemon.client() as client:
        assert client.compile(MODULES[0]).header.origin == COMPILED
        eventually(lambda: client.stats().object_store_detail, "Stats do not say why")
        stats = client.stats()
        told = daemon.banner + daemon.log + MessageToJson(stats)
        checked = run(WASMKILND, "config", "--json", "--state-dir", daemon.state_dir, **environ)
        told += checked.stdout + checked.stderr
        for what in ("write", "read", "delete"):
            assert f"cannot {what} an object: the object store " in checked.stderr
        let_in = run(WASMKILND, "config", "--state-dir", daemon.state_dir, **site.environ())
        assert let_in.returncode == 0, let_in.stderr
        assert not site.store.names("probe")
    assert stats.object_store_detail.count("\n") == 0
    secrets = [SECRET, *(v for k, v in environ.items() if k.endswith("KEY"))]
    assert not [secret for secret in secrets if secret in told]


@in_buckets
def test_a_store_that_does_not_exist_yet_stops_nobody(site: Site) -> None:
    url = site.store.url.replace(PREFIX, "another").replace("://artifacts", "://no-such-bucket")
    with site.daemon(REDIS_URL="none", OBJECT_STORE_URL=url) as (_, client):
        assert client.compile(MODULES[0]).header.origin == COMPILED
        assert client.compile(MODULES[0]).header.origin == MEMORY


@in_buckets
def test_the_cache_command_works_on_it(site: Site, tmp_path: Path) -> None:
    with site.daemon(*TWO_ENGINES) as (daemon, client):
        made = {engine: stored(client, *MODULES, engine=engine) for engine in TWO_ENGINES}
    where = ("--tier", "object_store", "--state-dir", str(daemon.state_dir))

    def cache(*words: object, code: int = 0) -> list[dict[str, Any]]:
        done = run(WASMKILND, "cache", *words, *where, "--json", **site.environ())
        assert done.returncode == code, (done.stdout, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    rows = cache("ls")
    artifacts = [(row["module"], row["engine"]) for row in rows if row["what"] == "artifact"]
    assert artifacts == sorted(itertools.product(map(wasm.digest, MODULES), TWO_ENGINES))
    [removed] = cache("rm", "--engine", "wasmer")
    assert removed["removed"]["artifacts"] == len(MODULES)
    assert not site.store.names(WASMER)
    values, folder = site.store.values(), tmp_path.as_uri()
    for copy in (folder, f"{site.store.url}-copy"):
        cache("export", copy)
        cache("rm", "--all", "--yes")
        assert site.store.names() == []
        cache("import", copy)
        assert site.store.values() == values
    bad = site.store.names("compiled")[0]
    site.store.put({bad: flipped(values[bad], -1)})
    *found, _ = cache("scrub", code=3)
    assert [each["deleted"] for each in found] == [True]
    assert site.store.names() == [name for name in values if name != bad]
    cache("import", folder)
    site.flush()
    with site.daemon(WASMTIME) as (_, client):
        for digest, artifact in made[WASMTIME].items():
            found_again = client.compile(digest)
            assert (found_again.header.origin, found_again.bytes) == (OBJECTS, artifact)
