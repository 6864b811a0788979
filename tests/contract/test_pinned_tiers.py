"""What a daemon does for its pins in all tiers at once, on a real server and a real disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from wasmkilnd.cache.host_store import HostDirectory, HostOptions, HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.open_shared import open_shared
from wasmkilnd.cache.pin_file import PinFile
from wasmkilnd.cache.pinned_tiers import TiersWithPins
from wasmkilnd.cache.redis.connect import NO_ACCESS, connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.shared_server import RemoteOptions, SharedServer
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.model import Artifact, Module
from wasmkilnd.pin_service import PinService, Unpinned
from wasmkilnd.pins import Pins
from wasmkilnd.rpc.wire.headers import header_of

from tests.contract.host_store import NO_ENGINES
from tests.contract.sealing import MADE_S, sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import module
from tests.doubles.notes import Notes
from tests.servers.redis_server import TIMEOUT_S, RedisServer, binary_of, redis_server

SEALER = sealer()
MIB = 1024 * 1024


def artifact(tag: int) -> Artifact:
    return SEALER.seal(unsigned(tag, 20_000))


class Rig:
    """The tiers of one namespace, as tenants/graph.py builds them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.pins = Pins()
        is_pinned = self.pins.is_pinned
        marks = Marks(lambda: MADE_S - 3600, is_pinned)
        self.memory = MemoryTier(MIB, is_pinned)
        self.directory = HostDirectory(HostOptions(folder / "host", MIB))
        self.host = HostStore(
            self.directory,
            SEALER,
            Notes(),
            header_of=header_of,
            engines=lambda: NO_ENGINES,
            wait_s=TIMEOUT_S,
            artifact_bytes=lambda: MIB,
            write_queue_bytes=lambda: MIB,
            is_pinned=is_pinned,
        )
        options = RemoteOptions(
            url=url,
            access=NO_ACCESS,
            state_dir=folder,
            embedded_limit_bytes=0,
            prefix="wasm:",
            ttl_s=1000,
            ttl_refresh=True,
            timeout_s=1.0,
            retry_max_s=0.1,
            write_queue_bytes=lambda: MIB,
            lease_s=0,
            fleet_wait_s=lambda: 0.0,
            artifact_bytes=lambda: MIB,
            module_bytes=lambda: MIB,
        )
        self.link = GuardedRedis(connect(url), longest_wait_s=0.1)
        server = SharedServer(place="here", mode="external", link=self.link)
        self.shared = open_shared(server, options, SEALER, Notes(), marks, "", is_pinned)
        self.tiers = TiersWithPins(
            self.pins, self.memory, self.host, self.shared, PinFile(folder, "")
        )
        self.service = PinService(self.pins, self.tiers)

    async def start(self) -> None:
        await self.tiers.read()
        await asyncio.gather(self.host.start(), self.shared.start())
        self.tiers.start()

    async def store(self, *items: Artifact | Module) -> None:
        for item in items:
            if isinstance(item, Artifact):
                await self.memory.put(item)
                self.host.write_behind.add(item)
            else:
                await self.memory.put_module(item)
            self.shared.write_behind.add(item)
        await self.written()

    async def written(self) -> None:
        await self.host.flush(TIMEOUT_S)
        await self.shared.flush(TIMEOUT_S)

    async def close(self) -> None:
        await self.tiers.close()
        await self.shared.close()
        await self.host.close()
        await self.directory.close()
        await self.link.close()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def server(valkey: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


@pytest.fixture
async def rig(valkey: RedisServer, server: redis.Redis, tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(valkey.url, tmp_path)
    await made.start()
    yield made
    await made.close()


async def until(happens: object, rig: Rig) -> None:
    """Have it look until what it looks after is so."""
    assert callable(happens)
    async with asyncio.timeout(TIMEOUT_S):
        while not happens():
            rig.tiers.look_soon()
            await asyncio.sleep(0.02)
            await rig.written()


def values(server: redis.Redis) -> dict[str, int]:
    """Return the times to live of all values, by the kind of each."""
    names = server.keys("wasm:[cm]o*")
    assert isinstance(names, list)
    return {str(name).split(":")[1]: int(str(server.ttl(name))) for name in names}


async def test_what_a_tier_lost_comes_back_from_another(rig: Rig, server: redis.Redis) -> None:
    dear = artifact(0)
    await rig.store(dear, module(0))
    assert (await rig.service.pin(dear.module_sha256)).reached_redis
    kept = {"compiled": -1, "module": -1}
    await until(lambda: values(server) == kept, rig)
    server.flushall()
    await until(lambda: values(server) == kept, rig)
    # Somebody gives a value a time to live: another daemon that does not know the pin yet.
    server.expire(f"wasm:compiled:{{{dear.module_sha256}}}:{dear.spec.fingerprint}", 100)
    await until(lambda: values(server) == kept, rig)
    # Memory forgets it: the host store still has the artifact, and nobody the module.
    await rig.memory.close()
    server.flushall()
    await until(lambda: values(server) == {"compiled": -1}, rig)
    assert await rig.service.unpin(dear.module_sha256) == Unpinned(True, True)
    assert 900 < values(server)["compiled"] <= 1000
    for usage in (rig.memory.usage(), rig.host.usage(), rig.tiers.redis_usage()):
        assert (usage.pinned_entries, usage.pinned_bytes) == (0, 0)


async def test_the_host_store_gets_back_what_it_lost(rig: Rig) -> None:
    dear = artifact(0)
    await rig.store(dear)
    await rig.service.pin(dear.module_sha256)
    key = dear.key
    found = await rig.host.file_of(key)
    assert found
    path = found[1].path
    for file in Path(path).parent.iterdir():
        file.write_bytes(b"damaged")
    assert await rig.host.get(key) is None
    await until(Path(path).exists, rig)
    assert await rig.host.get(key)


async def test_in_redis_the_latest_pins_lose_their_hold_above_half(
    rig: Rig, server: redis.Redis
) -> None:
    several = [artifact(tag) for tag in range(3)]
    await rig.store(*several)
    for each in several:
        await rig.service.pin(each.module_sha256)
    assert rig.tiers.redis_usage().pinned_entries == 3
    ours = rig.tiers.redis_usage().pinned_bytes
    # Room for two of three.
    server.config_set("maxmemory", 2 * ours - 2)
    server.config_set("maxmemory-policy", "noeviction")
    first = several[0].module_sha256
    await rig.tiers.apply([first])
    assert rig.tiers.redis_usage().pinned_entries == 2
    assert rig.tiers.redis_usage().let_go == 1
    last = f"wasm:compiled:{{{several[2].module_sha256}}}:{several[2].spec.fingerprint}"
    assert int(str(server.ttl(last))) > 0
    server.config_set("maxmemory", 0)
    await rig.tiers.apply([first])
    await rig.tiers.apply([several[2].module_sha256])
    assert rig.tiers.redis_usage().pinned_entries == 3
    assert int(str(server.ttl(last))) == -1


async def test_a_pin_made_while_redis_is_away_is_told_later(
    valkey: RedisServer, server: redis.Redis, tmp_path: Path
) -> None:
    dear = artifact(0)
    link = tmp_path / "link.sock"
    rig = Rig(f"unix://{link}", tmp_path)
    await rig.start()
    try:
        await rig.memory.put(dear)
        pinned = await rig.service.pin(dear.module_sha256)
        assert not pinned.reached_redis
        assert set(pinned.pin.tiers) == {"memory", "host_store"}
        link.symlink_to(valkey.url.removeprefix("unix://"))
        await until(lambda: values(server) == {"compiled": -1}, rig)
        assert server.keys("wasm:pins:*")
    finally:
        await rig.close()
    again = Rig(valkey.url, tmp_path)
    await again.start()
    try:
        assert [pin.module_sha256 for pin in await again.service.listed()] == [dear.module_sha256]
    finally:
        await again.close()
