"""The tiers with real servers: every daemon finds what one of them compiled."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from wasmkiln import Client, ModuleNotLoaded
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually, parent_of
from tests.e2e.programs import Installed
from tests.e2e.stored_values import flipped, names_of, values_of
from tests.servers.redis_server import binary_of, redis_server

MEMORY, REDIS, COMPILED = (
    types_pb2.ORIGIN_MEMORY,
    types_pb2.ORIGIN_REDIS,
    types_pb2.ORIGIN_COMPILED,
)


@pytest.fixture(scope="module")
def redis_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("server")) as running:
        yield running.url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """A real server, with nothing in it; test_redis_kinds.py has all other kinds."""
    with redis.Redis.from_url(redis_server_url) as direct:
        direct.flushall()
    return redis_server_url


def settled(client: Client) -> None:
    """Wait until nothing waits to be written."""
    deadline = time.monotonic() + 20
    while client.stats().pending_writes:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_another_daemon_on_the_same_redis_compiles_nothing(
    engines: Installed, tmp_path: Path, redis_url: str
) -> None:
    flags = {"WASMKILN_REDIS_URL": redis_url}
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=flags) as one,
        one.client() as client,
    ):
        first = client.compile(wasm.adder(1))
        assert first.header.origin == COMPILED
        assert client.compile(wasm.adder(1)).header.origin == MEMORY
        settled(client)
    with (
        RedisDaemon(fresh_state(tmp_path / "b", engines=ONE_ENGINE), environ=flags) as two,
        two.client() as client,
    ):
        second = client.compile(first.header.module_sha256)
        assert second.header.origin == REDIS
        assert second.bytes == first.bytes
        assert client.compile(first.header.module_sha256).header.origin == MEMORY
        # The module itself came along, so another target is compiled without an upload.
        assert client.compile(first.header.module_sha256, cpu="baseline").header.size_bytes
        stats = client.stats()
        assert stats.redis_up
        assert stats.redis_mode == "external"
        assert {c.engine: c.count for c in stats.compiles if c.count} == {"wasmer-1.1.0": 1}


def test_an_embedded_server_that_could_not_be_started_is_used_when_it_can(
    engines: Installed, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "a", engines=ONE_ENGINE)
    in_the_way = state / "redis"
    in_the_way.write_text("where its folder is to be")
    with RedisDaemon(state) as daemon, daemon.client() as client:
        assert "which does not answer yet" in daemon.banner
        header = client.compile(wasm.adder(1)).header
        stats = client.stats()
        assert not stats.redis_up
        assert stats.redis_mode == "embedded"
        assert "the embedded server does not start" in stats.redis_detail
        in_the_way.unlink()
        deadline = time.monotonic() + 60
        while not client.stats().redis_up:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        settled(client)
        client.evict(everything=True, tier="memory")
        assert client.compile(header.module_sha256).header.origin == REDIS


def test_loading_again_puts_a_module_back_that_redis_has_lost(
    engines: Installed, tmp_path: Path, redis_url: str
) -> None:
    flags = {"WASMKILN_REDIS_URL": redis_url}
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=flags) as one,
        RedisDaemon(fresh_state(tmp_path / "b", engines=ONE_ENGINE), environ=flags) as two,
        one.client() as here,
        two.client() as there,
        redis.Redis.from_url(redis_url) as direct,
    ):
        sha256 = here.load(wasm.adder(1)).sha256
        settled(here)
        direct.flushall()
        with pytest.raises(ModuleNotLoaded):
            there.compile(sha256)
        assert here.load(wasm.adder(1)).already_loaded
        deadline = time.monotonic() + 20
        while not names_of(direct, sha256):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert there.compile(sha256).header.origin == COMPILED


def test_keys_and_lifetime(engines: Installed, tmp_path: Path, redis_url: str) -> None:
    flags = {"WASMKILN_REDIS_URL": redis_url, "WASMKILN_CACHE_TTL_S": "1000"}
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=flags) as daemon,
        daemon.client() as client,
    ):
        header = client.compile(wasm.adder(2)).header
        settled(client)
        with redis.Redis.from_url(redis_url) as direct:
            names = names_of(direct, header.module_sha256)
            assert len(names) > 1  # The artifact, and its module.
            assert all(900 < direct.ttl(name) <= 1000 for name in names)
            assert all(name.startswith(b"wasm:") for name in direct.scan_iter())


def test_what_is_used_lives_on(engines: Installed, tmp_path: Path, redis_url: str) -> None:
    flags = {
        "WASMKILN_REDIS_URL": redis_url,
        "WASMKILN_CACHE_TTL_S": "1000",
    }
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=flags) as daemon,
        daemon.client() as client,
        redis.Redis.from_url(redis_url) as direct,
    ):

        def lives_on(names: set[bytes]) -> bool:
            deadline = time.monotonic() + 20
            while not all(direct.ttl(name) > 900 for name in names):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            return True

        header = client.compile(wasm.adder(2)).header
        loaded = client.load(wasm.adder(3)).sha256
        settled(client)
        used, alone = names_of(direct, header.module_sha256), names_of(direct, loaded)
        assert used
        assert alone
        for name in used | alone:
            direct.expire(name, 100)
        assert client.compile(header.module_sha256).header.origin == MEMORY
        assert lives_on(used)
        assert all(direct.ttl(name) <= 100 for name in alone)
        # A module that nothing was compiled of is used when it is looked up.
        assert client.load(wasm.adder(3)).already_loaded
        assert lives_on(alone)


def test_a_damaged_value_is_a_miss(engines: Installed, tmp_path: Path, redis_url: str) -> None:
    flags = {"WASMKILN_REDIS_URL": redis_url}
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=flags) as one,
        one.client() as client,
        redis.Redis.from_url(redis_url) as direct,
    ):
        client.load(wasm.adder(3))
        settled(client)
        module = values_of(direct, wasm.digest(wasm.adder(3)))
        good = client.compile(wasm.adder(3))
        settled(client)
        stored = values_of(direct, good.header.module_sha256)
        [mine] = stored.keys() - module.keys()
        value, [foreign] = stored[mine], module.values()
    with (
        RedisDaemon(fresh_state(tmp_path / "b", engines=ONE_ENGINE), environ=flags) as two,
        two.client() as client,
        redis.Redis.from_url(redis_url) as direct,
    ):
        errors = 0
        for damage in (
            *(b"", b"nonsense", value[:-1], value + b"x"),
            *(flipped(value, len(value) // 2), foreign),
        ):
            direct.set(mine, damage)
            client.evict(everything=True, tier="memory")
            again = client.compile(good.header.module_sha256)
            assert again.header.origin == COMPILED
            assert again.bytes == good.bytes
            near = next(t for t in client.stats().tiers if t.tier == "redis")
            # An empty string may pass for no value at all.
            assert near.errors == errors + 1 or (near.errors == errors and not damage)
            errors = near.errors
            settled(client)
            client.evict(module_sha256=good.header.module_sha256, tier="memory")
            mended = client.compile(good.header.module_sha256)
            assert mended.header.origin == REDIS
            assert mended.bytes == good.bytes


def test_the_embedded_server_survives_a_restart(lean_state_dir: Path) -> None:
    with RedisDaemon(lean_state_dir) as one, one.client() as client:
        first = client.compile(wasm.adder(5))
        settled(client)
        assert client.stats().redis_mode == "embedded"
    with RedisDaemon(lean_state_dir) as two, two.client() as client:
        again = client.compile(first.header.module_sha256)
        assert again.header.origin == REDIS
        assert again.bytes == first.bytes


def test_a_killed_daemon_leaves_nothing_behind(lean_state_dir: Path) -> None:
    daemon = RedisDaemon(lean_state_dir)
    with daemon.client() as client:
        first = client.compile(wasm.adder(6))
        settled(client)
    time.sleep(1.1)  # The server writes its file every second.
    children = daemon.children()
    assert children
    daemon.kill()
    eventually(lambda: not any(map(parent_of, children)), "children outlived their daemon", 30)
    with RedisDaemon(lean_state_dir) as again, again.client() as client:
        assert client.compile(first.header.module_sha256).header.origin == REDIS


@pytest.mark.parametrize("stop_first", [0, 1])
def test_two_daemons_share_one_embedded_server(lean_state_dir: Path, stop_first: int) -> None:
    with RedisDaemon(lean_state_dir) as one, RedisDaemon(lean_state_dir) as two:
        daemons = [one, two]
        with one.client() as client:
            header = client.compile(wasm.adder(7 + stop_first)).header
            settled(client)
        with two.client() as client:
            assert client.compile(header.module_sha256).header.origin == REDIS
        leaving, staying = daemons[stop_first], daemons[1 - stop_first]
        assert leaving.stop() == 0

        def is_found() -> bool:
            client.evict(module_sha256=header.module_sha256, tier="memory")
            with contextlib.suppress(ModuleNotLoaded):
                return client.compile(header.module_sha256).header.origin == REDIS
            return False

        with staying.client() as client:
            if leaving is one:  # It kept the server. Calls may miss until the other one keeps it.
                eventually(is_found, "nobody started the server again")
            assert is_found()


def test_the_embedded_server_comes_back_when_it_is_killed(lean_state_dir: Path) -> None:
    with RedisDaemon(lean_state_dir) as daemon, daemon.client() as client:
        header = client.compile(wasm.adder(9)).header
        settled(client)
        time.sleep(1.1)  # The server writes its file every second.
        for victim in server_processes(lean_state_dir):
            os.kill(victim, signal.SIGKILL)
        # Meanwhile nobody notices.
        assert client.compile(header.module_sha256).header.origin == MEMORY
        assert client.compile(wasm.adder(10)).header.origin == COMPILED
        deadline = time.monotonic() + 30
        while True:
            client.evict(module_sha256=header.module_sha256, tier="memory")
            # Until then neither tier has the module, which a caller would send again.
            with contextlib.suppress(ModuleNotLoaded):
                if client.compile(header.module_sha256).header.origin == REDIS:
                    break
            assert time.monotonic() < deadline, daemon.log[-3000:]
            time.sleep(0.1)


def server_processes(state_dir: Path) -> list[int]:
    """Return the valkey-server processes of a state directory."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            folder = str((process / "cwd").readlink())
        except OSError:
            continue
        if b"valkey-server" in words[0] and folder.startswith(str(state_dir.resolve())):
            found.append(int(process.name))
    assert found
    return found


def test_memory_only(lean_state_dir: Path) -> None:
    with RedisDaemon(lean_state_dir, ["--redis-url", "none"]) as daemon, daemon.client() as client:
        assert client.compile(wasm.adder(11)).header.origin == COMPILED
        assert client.compile(wasm.adder(11)).header.origin == MEMORY
        stats = client.stats()
        assert (stats.redis_mode, stats.redis_up) == ("none", False)


def test_a_redis_that_is_not_there_costs_nobody_anything(
    lean_state_dir: Path, tmp_path: Path
) -> None:
    flags = {"WASMKILN_REDIS_URL": f"unix://:hunter2@{tmp_path}/nothing.sock"}
    with RedisDaemon(lean_state_dir, environ=flags) as daemon, daemon.client() as client:
        assert client.compile(wasm.adder(12)).header.origin == COMPILED
        assert client.compile(wasm.adder(12)).header.origin == MEMORY
        stats = client.stats()
        assert not stats.redis_up
        assert stats.redis_detail
        assert "hunter2" not in stats.redis_detail + daemon.log + daemon.banner


def test_evict(state_dir: Path) -> None:
    with RedisDaemon(state_dir) as daemon, daemon.client() as client:
        one = client.compile(wasm.adder(13), engine="wasmtime").header
        two = client.compile(wasm.adder(14), engine="wasmer").header
        settled(client)
        gone = client.evict(engine="wasmtime-50.0.1")
        assert (gone.artifacts, gone.modules) == (2, 0)  # in memory and in Redis
        assert [key.module_sha256 for key in client.find_missing([two.module_sha256])] == []
        again = client.compile(one.module_sha256, engine="wasmtime")
        assert again.header.origin == COMPILED
        settled(client)
        gone = client.evict(module_sha256=two.module_sha256, tier="redis")
        assert (gone.artifacts, gone.modules) == (1, 1)
        assert client.compile(two.module_sha256).header.origin == MEMORY
        gone = client.evict(everything=True)
        assert gone.artifacts >= 3
        assert client.find_missing([one.module_sha256, two.module_sha256]).__len__() == 2
        tiers = {tier.tier: tier for tier in client.stats().tiers}
        assert tiers["memory"].entries == 0
        assert tiers["memory"].bytes == 0
