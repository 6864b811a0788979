"""One suite for every tier: what the port promises holds for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, EvictScope, Kind, Module
from wasmkilnd.ports import Tier

from tests.contract.host_store import host_store
from tests.contract.redis_access import redis_access
from tests.contract.sealing import early_marks, sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import module, same
from tests.doubles.notes import Notes
from tests.servers.deployments import NO_ACCESS, Access, Deployment
from tests.servers.redis_server import KINDS, binary_of, redis_server

SEALER = sealer()


def redis_tier(
    url: str,
    recorder: Notes | None = None,
    timeout_s: float = 5,
    access: Access = NO_ACCESS,
) -> RedisTier:
    server = connect(url, redis_access(access), connect_timeout_s=timeout_s, timeout_s=timeout_s)
    return RedisTier(
        server, SEALER, recorder or Notes(), prefix="wasm:", ttl_s=100, marks=early_marks()
    )


def artifact(
    tag: int = 0, size_bytes: int = 100, engine: str = "wasmtime", of: Module | None = None
) -> Artifact:
    return SEALER.seal(unsigned(tag, size_bytes, engine, of))


def keeps_modules(tier: Tier) -> bool:
    """Whether ``tier`` keeps what ``put_module`` gives it. The host store keeps artifacts only."""
    return not isinstance(tier, HostStore)


@pytest.fixture
async def tier(deployment: Deployment | Path | None) -> AsyncIterator[Tier]:
    if deployment is None:
        yield MemoryTier(100_000_000)
        return
    if isinstance(deployment, Path):
        store = host_store(deployment, SEALER)
        await store.start()
        await store.evict(EvictScope())
        yield store
        await store.close()
        return
    tier = redis_tier(deployment.url, access=deployment.access)
    assert await tier.start()
    await tier.evict(EvictScope())
    yield tier
    await tier.close()


async def test_a_put_artifact_is_returned_whole(tier: Tier) -> None:
    for size_bytes in (0, 1, 600_000, 5_000_000):
        one = artifact(size_bytes, size_bytes)
        assert await tier.get(one.key) is None
        await tier.put(one)
        assert same(await tier.get(one.key), one)
        assert await tier.kinds_of([one.key]) == {one.key: Kind.CORE_MODULE}


async def test_modules(tier: Tier) -> None:
    one = module(1)
    assert await tier.get_module(one.sha256) is None
    assert not await tier.has_module(one.sha256)
    await tier.put_module(one)
    assert await tier.get_module(one.sha256) == (one if keeps_modules(tier) else None)
    assert await tier.has_module(one.sha256) == keeps_modules(tier)


async def test_a_later_put_replaces(tier: Tier) -> None:
    old, new = artifact(1, 1000), artifact(1, 2000)
    assert old.key == new.key
    await tier.put(old)
    await tier.put(new)
    assert same(await tier.get(new.key), new)


async def test_held(tier: Tier) -> None:
    held = [artifact(tag) for tag in range(20)]
    for one in held[::2]:
        await tier.put(one)
    keys = [one.key for one in held]
    assert await tier.held(keys) == frozenset(keys[::2])
    assert await tier.held([]) == frozenset()
    assert await tier.kinds_of(keys) == dict.fromkeys(keys[::2], Kind.CORE_MODULE)
    assert await tier.kinds_of([]) == {}


async def test_evicting_a_module_takes_its_artifacts(tier: Tier) -> None:
    mine, other = module(1), module(2)
    await tier.put_module(mine)
    await tier.put_module(other)
    artifacts = [artifact(1, engine=name, of=mine) for name in ("wasmer", "wasmtime")]
    for one in (*artifacts, artifact(2)):
        await tier.put(one)
    gone = await tier.evict(EvictScope(module_sha256=mine.sha256))
    assert (gone.artifacts, gone.modules) == (2, int(keeps_modules(tier)))
    assert gone.bytes > 300
    assert await tier.get(artifacts[0].key) is None
    assert await tier.get_module(mine.sha256) is None
    assert await tier.get(artifact(2).key) is not None
    assert await tier.has_module(other.sha256) == keeps_modules(tier)


async def test_evicting_an_engine_leaves_modules_and_other_engines(tier: Tier) -> None:
    await tier.put_module(module(1))
    for tag in range(30):
        await tier.put(artifact(tag, engine="wasmer" if tag % 3 else "wasmtime"))
    gone = await tier.evict(EvictScope(engine_id="wasmer-1.0"))
    assert (gone.artifacts, gone.modules) == (20, 0)
    assert await tier.get(artifact(0, engine="wasmtime").key) is not None
    assert await tier.has_module(module(1).sha256) == keeps_modules(tier)


async def test_evicting_everything(tier: Tier) -> None:
    await tier.put_module(module(1))
    await tier.put(artifact(1))
    gone = await tier.evict(EvictScope())
    assert (gone.artifacts, gone.modules) == (1, int(keeps_modules(tier)))
    assert await tier.evict(EvictScope()) == type(gone)()


@pytest.mark.parametrize("name", KINDS)
async def test_other_users_of_a_redis_are_left_alone(tmp_path: Path, name: str) -> None:
    with redis_server(binary_of(name), tmp_path) as running:
        tier = redis_tier(running.url)
        client = Redis.from_url(running.url)
        digest = "a" * 64
        others = [b"theirs", b"wasm:other", b"wasm:module:foo", b"wasm:compiled:", b"wasm:part:x"]
        others += [
            f"wasm:{name}".encode()
            for name in (f"compiled:{{{digest}}}", f"module:{{{digest}}}:x", f"part:{{{digest}}}:x")
        ]
        for other in others:
            await client.set(other, "kept")
        await tier.put(artifact(1, 2_000_000))
        await tier.put_module(module(1))
        gone = await tier.evict(EvictScope())
        assert (gone.artifacts, gone.modules) == (1, 1)
        assert sorted(await client.keys()) == sorted([*others, b"wasm:mark:all"])
        await client.aclose()
        await tier.close()


async def test_a_damaged_value_is_deleted_counted_and_a_miss(tmp_path: Path) -> None:
    recorder = Notes()
    with redis_server(binary_of("valkey"), tmp_path) as running:
        tier = redis_tier(running.url, recorder)
        client = Redis.from_url(running.url)
        one = artifact(1, 100_000)
        await tier.put(one)
        [name] = await client.keys()
        stored = await client.get(name)
        assert isinstance(stored, bytes)
        for damage in (b"x", stored[:-1], stored[:50_000] + b"!" + stored[50_001:]):
            await client.set(name, damage)
            assert await tier.get(one.key) is None
            assert await client.exists(name) == 0
        assert recorder.rejected == ["format", "truncated", "digest"]
        await client.aclose()
        await tier.close()


async def test_a_server_that_is_gone_is_an_error_and_then_left_alone(tmp_path: Path) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        tier = redis_tier(running.url)
        assert await tier.start()
        assert tier.breaker.up
        running.process.kill()
        running.process.wait()
        with pytest.raises(TierUnavailable, match="cannot reach Redis"):
            await tier.get(artifact(1).key)
        assert tier.breaker.open
        with pytest.raises(TierUnavailable):
            await tier.put(artifact(1))
    with redis_server(binary_of("valkey"), tmp_path):
        await tier.breaker.wait_closed()
        await tier.put(artifact(1))
        assert same(await tier.get(artifact(1).key), artifact(1))
    await tier.close()


async def test_a_wrong_password_is_reported_without_it(tmp_path: Path) -> None:
    settings = ["--requirepass", "right"]
    with redis_server(binary_of("valkey"), tmp_path, settings) as running:
        tier = redis_tier(running.url.replace("unix://", "unix://:wrong@"))
        assert not await tier.start()
        assert tier.breaker.detail == "Redis refuses the user or password"
        await tier.close()


async def test_a_full_server_is_reported_and_no_outage(tmp_path: Path) -> None:
    settings = ["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]
    with redis_server(binary_of("valkey"), tmp_path, settings) as running:
        tier = redis_tier(running.url)
        assert await tier.start()
        with contextlib.suppress(TierUnavailable):
            await tier.put(artifact(1, 2_000_000))
        with pytest.raises(TierUnavailable, match="maxmemory"):
            await tier.put(artifact(2, 2_000_000))
        assert tier.breaker.up
        assert "maxmemory" in tier.write_refusal
        await tier.close()
