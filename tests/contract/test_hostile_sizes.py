"""Huge values under our names, from whoever may write to the server: they cost little memory."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.fleet.holders import Sightings
from wasmkilnd.cache.fleet.lease import Lease
from wasmkilnd.cache.fleet.lease_commands import LeaseCommands
from wasmkilnd.cache.fleet.lease_store import LeaseStatus, LeaseStore
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.value import header as stored_header
from wasmkilnd.maintenance.inventory import Inventory
from wasmkilnd.maintenance.orphans import Mentions, OrphanFinder
from wasmkilnd.model import CacheKey, EvictScope, ExternType, Strike
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module, same
from tests.doubles.notes import Notes
from tests.servers.redis_server import KINDS, RedisServer, binary_of, redis_server

SEALER, STRANGER = sealer(OURS), sealer(THEIRS)
HUGE_BYTES = 100 * 1024**2
# A value may be read up to 5 MB, several times over in buffers of the client and of Python.
GROWTH_BYTES = 48 * 1024**2
ONE = SEALER.seal(artifact(1, 1_500_000))
WASM = module(1, 1_500_000)
STRIKE = Strike(ONE.key, "e-1", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("server")
    with redis_server(binary_of(request.param), folder) as running:
        yield running


@pytest.fixture
async def raw(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def tier(server: RedisServer, notes: Notes) -> AsyncIterator[RedisTier]:
    async with tier_of(server, SEALER, notes) as made:
        yield made


@contextlib.asynccontextmanager
async def tier_of(
    server: RedisServer, signer: Sealer, notes: Notes | None = None, limit_bytes: int = 1 << 40
) -> AsyncIterator[RedisTier]:
    made = RedisTier(
        connect(server.url),
        signer,
        notes or Notes(),
        timeout_s=10.0,
        artifact_bytes=lambda: limit_bytes,
        module_bytes=lambda: limit_bytes,
    )
    try:
        yield made
    finally:
        await made.close()


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Assert that this process never takes much more memory within the context."""
    Path("/proc/self/clear_refs").write_text("5")  # The peak is from now on.
    before = _memory("VmRSS")
    yield
    assert _memory("VmHWM") - before < GROWTH_BYTES


def _memory(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


async def enlarge(raw: Redis, name: bytes) -> None:
    """Let what is stored under ``name`` go on and on."""
    await raw.setrange(name, HUGE_BYTES, b"x")


async def names_of_parts(raw: Redis) -> list[bytes]:
    return [name async for name in raw.scan_iter(match="wasm:part:*")]


@pytest.mark.parametrize("is_good_at_first", [True, False])
@pytest.mark.parametrize("which", ["artifact", "module", "artifact_part", "module_part"])
async def test_a_value_or_a_piece(
    tier: RedisTier, raw: Redis, notes: Notes, which: str, is_good_at_first: bool
) -> None:
    get: Callable[[], Awaitable[object]]
    if which.startswith("artifact"):
        await tier.put(ONE)
        get, name = lambda: tier.get(ONE.key), tier.names.artifact(ONE.key)
    else:
        await tier.put_module(WASM)
        get, name = lambda: tier.get_module(WASM.sha256), tier.names.module(WASM.sha256)
    if which.endswith("part"):
        name = (await names_of_parts(raw))[0]
    if not is_good_at_first:
        await raw.delete(name)
    await enlarge(raw, name)
    with little_memory():
        assert await get() is None
    assert notes.rejected == ["format"]
    assert not await raw.exists(name)


async def test_what_reads_heads_only(tier: RedisTier, raw: Redis) -> None:
    await tier.put(ONE)
    await tier.put_module(WASM)
    await enlarge(raw, tier.names.artifact(ONE.key))
    await enlarge(raw, tier.names.module(WASM.sha256))
    with little_memory():
        assert len(await tier.kinds_of([ONE.key])) == 1
        await tier.renew(ONE.key)
        gone = await tier.evict(EvictScope(engine_id=ONE.spec.engine.id))
    assert gone.artifacts == 1


@pytest.mark.parametrize("is_good_at_first", [True, False])
async def test_a_lease(tier: RedisTier, raw: Redis, is_good_at_first: bool) -> None:
    leases, ours = leases_over(tier), Lease.new(600_000)
    name = tier.names.lease(ONE.key)
    if is_good_at_first:
        assert await leases.take(ONE.key, Lease.new(600_000), Sightings()) is LeaseStatus.TAKEN
    await enlarge(raw, name)
    with little_memory():
        assert await leases.look(ONE.key, Sightings()) is LeaseStatus.FREE
        assert await leases.take(ONE.key, ours, Sightings()) is LeaseStatus.SEIZED
    assert await raw.strlen(name) < 1000
    await enlarge(raw, name)
    with little_memory():
        assert await LeaseCommands(tier.link).replace(name, ours.token, ours.token, 600_000)
        await enlarge(raw, name)
        await leases.release(ONE.key, ours)
    assert not await raw.exists(name)


async def test_an_empty_lease_is_nobody_s_and_makes_nobody_wait(
    tier: RedisTier, raw: Redis
) -> None:
    leases = leases_over(tier)
    assert await leases.look(ONE.key, Sightings()) is LeaseStatus.FREE
    await raw.set(tier.names.lease(ONE.key), b"")
    assert await leases.look(ONE.key, Sightings()) is LeaseStatus.FREE
    assert await leases.take(ONE.key, Lease.new(600_000), Sightings()) is LeaseStatus.SEIZED


def leases_over(tier: RedisTier) -> LeaseStore:
    async def stored(key: CacheKey) -> None:
        return None

    return LeaseStore(tier.link, tier.names, SEALER, stored, 600.0)


async def test_a_strike(tier: RedisTier, raw: Redis) -> None:
    strikes = RedisStrikes(tier.link, tier.names, SEALER)
    await strikes.put(STRIKE, 1000, WaitBudget())
    await enlarge(raw, tier.names.strike(ONE.key))
    with little_memory():
        assert await strikes.get(ONE.key, WaitBudget()) is None
        assert await strikes.all() == []
    assert await strikes.remove("") == [ONE.key]


async def test_what_is_larger_than_the_limit_is_left_to_others(
    tier: RedisTier, server: RedisServer
) -> None:
    await tier.put(ONE)
    await tier.put_module(WASM)
    notes = Notes()
    async with tier_of(server, SEALER, notes, 1_499_999) as small:
        assert await small.get(ONE.key) is None
        assert await small.get_module(WASM.sha256) is None
    async with tier_of(server, SEALER, notes, 1_500_000) as enough:
        assert same(await enough.get(ONE.key), ONE)
        assert await enough.get_module(WASM.sha256) == WASM
    assert notes.rejected == []


async def test_long_heads_of_strangers_are_neither_kept_in_memory_nor_parsed(
    tier: RedisTier, raw: Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ExternType("module", "name", "function", "(i32, i32) -> (i32)")
    long = [
        dataclasses.replace(artifact(tag, 1_000_000), imports=(row,) * 75_000)
        for tag in range(10, 30)
    ]
    await tier.put(ONE)
    async with tier_of(server, STRANGER) as theirs:
        for one in long:
            await theirs.put(one)
    assert await raw.strlen(tier.names.artifact(long[0].key)) > 3_500_000
    parsed = []

    def read_header(header: bytes) -> object:
        parsed.append(len(header))
        return genuine(header)

    genuine = stored_header.read_header
    monkeypatch.setattr("wasmkilnd.cache.value.format.read_header", read_header)
    with little_memory():
        inventory = Inventory(tier.link, tier.names, SEALER)
        listed = {one.key.artifact: one async for one in inventory.values()}
        rest = await OrphanFinder(tier.link, tier.names, Mentions(tier.names)).count()
        kinds = await tier.kinds_of([one.key for one in (ONE, *long)])
        gone = await tier.evict(EvictScope(engine_id=ONE.spec.engine.id))
    assert max(parsed) < 10_000
    assert not listed[ONE.key].rejected
    rejections = [listed[one.key].rejected for one in long]
    assert {one.cause.value for one in rejections if one} == {"stranger"}
    assert len(rejections) == len(list(filter(None, rejections)))
    # Whether somebody's value mentions them is not known: so nobody takes them for orphans.
    assert (rest.parts, rest.orphans) == (2 + len(long), 0)
    assert kinds.keys() == {ONE.key}
    assert gone.artifacts == 1
    assert await tier.held([one.key for one in (ONE, *long)]) == {one.key for one in long}
