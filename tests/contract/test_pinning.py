"""Pins in all tiers at once, on a real server and a real disk, and among daemons that share them.

``samples/v0.6.0-pins.json`` in ``tests/formats`` was written by that version's code.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import MAX_PINS, Artifact, EvictScope, Held, Module
from wasmkilnd.pins import PinFile, Pins
from wasmkilnd.signing.keys import PrivateKey
from wasmkilnd.signing.sealer import Sealer

from tests.contract.host_store import host_store
from tests.contract.redis_stores import open_link, open_store
from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import module
from tests.doubles.notes import Notes
from tests.doubles.shelf import name_of
from tests.servers.redis_server import TIMEOUT_S, RedisServer

SEALER = sealer()
MIB = 1024 * 1024
A, B = "a" * 64, "b" * 64
FORMATS = Path(__file__).parents[1] / "formats"
SAMPLE = json.loads((FORMATS / "samples" / "v0.6.0-pins.json").read_text(encoding="utf-8"))
SAMPLED_BY = sealer(PrivateKey.parse(hashlib.sha256(b"the key of wasmkiln's samples").hexdigest()))


def artifact(tag: int) -> Artifact:
    return SEALER.seal(unsigned(tag, 20_000))


class Daemon:
    """The pins of one namespace and the tiers that they are about."""

    def __init__(
        self, folder: Path, url: str = "", *, sealer: Sealer = SEALER, namespace: str = ""
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.file = folder / "pins" / (f"ns-{namespace}.json" if namespace else "default.json")
        self.memory = MemoryTier(MIB, self.is_pinned)
        self.host = host_store(folder / "host", SEALER, limit_bytes=MIB, is_pinned=self.is_pinned)
        prefix = f"wasm:ns:{namespace}:" if namespace else "wasm:"
        self.redis = open_store(open_link(url), prefix, is_pinned=self.is_pinned) if url else None
        self.cache = Cache(
            self.memory,
            self.host,
            self.redis,
            Notes(),
            call_wait_s=TIMEOUT_S,
            write_queue_bytes=lambda: 100 * MIB,
        )
        self.pins = Pins(
            PinFile(folder, namespace), sealer, self.cache, self.memory, self.host, self.redis
        )

    def is_pinned(self, module_sha256: str) -> bool:
        return self.pins.is_pinned(module_sha256)

    async def start(self) -> None:
        await self.pins.read()
        await self.host.start()
        await self.pins.look()

    async def store(self, *items: Artifact | Module) -> None:
        for item in items:
            self.cache.put(item)
        await self.written()

    async def written(self) -> None:
        await self.cache.flush(TIMEOUT_S)

    async def listed(self) -> list[str]:
        return [pin.module_sha256 for pin in await self.pins.listed()]

    def in_file(self) -> dict[str, list[int]]:
        said = json.loads(self.file.read_text())["pins"]
        assert isinstance(said, dict)
        return said

    def write_file(self, times: dict[str, list[int]]) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps({"pins": times}))

    async def close(self) -> None:
        await self.cache.close()
        await self.host.close()
        if self.redis:
            await self.redis.link.close()


Start = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def start(server: redis.Redis, valkey: RedisServer, tmp_path: Path) -> AsyncIterator[Start]:
    """Start daemons: in a folder each, on one server unless another is named."""
    running = []

    async def begin(name: str = "one", url: str = valkey.url, **more: object) -> Daemon:
        made = Daemon(tmp_path / name, url, **more)  # type: ignore[arg-type]
        running.append(made)
        await made.start()
        return made

    yield begin
    for each in running:
        await each.close()


async def until(happens: Callable[[], object], *daemons: Daemon) -> None:
    """Have daemons look until what they look after is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not happens():
            for each in daemons:
                await each.pins.look()
                await each.written()


async def refused(call: Awaitable[object]) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as refusal:
        await call
    return refusal.value


def ttls(server: redis.Redis) -> dict[str, int]:
    """Return the times to live of all values, by the kind of each."""
    names = [*server.scan_iter("wasm:3:compiled:*"), *server.scan_iter("wasm:3:module:*")]
    return {str(name).split(":")[2]: ttl(server, name) for name in names}


def ttl(server: redis.Redis, name: str | bytes) -> int:
    return int(str(server.ttl(name)))


async def test_what_the_host_store_lost_and_what_came_after_the_pin_are_kept_too(
    start: Start, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TIDY_EVERY_S", "_SCAN_EVERY_S"):
        monkeypatch.setattr(f"wasmkilnd.cache.host_store.{name}", 0.1)
    one, dear = await start(), artifact(0)
    await one.store(module(0))
    await one.pins.pin(module(0).sha256)
    await one.store(dear)
    await until(lambda: ttls(server) == {"compiled": -1, "module": -1}, one)
    assert one.memory.usage().pinned_entries == 2
    found = await one.host.file_of(dear.key)
    assert found
    path = Path(found[1].path)
    for file in path.parent.iterdir():
        file.write_bytes(b"damaged")
    assert await one.host.get(dear.key) is None
    await until(path.exists, one)
    assert await one.host.get(dear.key)


async def test_in_redis_the_latest_pins_lose_their_hold_above_half(
    start: Start, server: redis.Redis
) -> None:
    one, several = await start(), [artifact(tag) for tag in range(3)]
    assert one.redis
    await one.store(*several)
    for each in several:
        await one.pins.pin(each.module_sha256)
        await asyncio.sleep(0.002)  # The order of pins is that of their milliseconds.
    assert one.pins.redis_usage.pinned_entries == 3
    # Room for two of three.
    server.config_set("maxmemory", 2 * one.pins.redis_usage.pinned_bytes - 2)
    server.config_set("maxmemory-policy", "noeviction")
    await one.pins.pin(several[0].module_sha256)
    assert one.pins.redis_usage.pinned_entries == 2
    assert one.pins.redis_usage.let_go == 1
    last = name_of(several[2])
    assert ttl(server, last) > 0
    server.config_set("maxmemory", 0)
    await one.pins.pin(several[0].module_sha256)
    await one.pins.pin(several[2].module_sha256)
    assert one.pins.redis_usage.pinned_entries == 3
    assert ttl(server, last) == -1
    # Several namespaces share half of the server. What was let go and then unpinned stays so.
    server.config_set("maxmemory", 4 * one.pins.redis_usage.pinned_bytes - 4)
    one.pins.namespaces = lambda: 2
    await one.pins.pin(several[0].module_sha256)
    assert ttl(server, last) > 0
    await one.pins.unpin(several[2].module_sha256)
    one.pins.namespaces = lambda: 1
    await one.pins.pin(several[0].module_sha256)
    assert ttl(server, last) > 0


async def test_a_pin_made_while_redis_is_away_is_told_later(
    start: Start, server: redis.Redis, valkey: RedisServer, tmp_path: Path
) -> None:
    link, dear = tmp_path / "link.sock", artifact(0)
    one = await start(url=f"unix://{link}")
    one.memory.put(dear)
    pin, reached_redis = await one.pins.pin(dear.module_sha256)
    assert not reached_redis
    assert set(pin.tiers) == {"memory", "host_store"}
    link.symlink_to(valkey.url.removeprefix("unix://"))
    await until(lambda: ttls(server) == {"compiled": -1}, one)
    assert server.keys("wasm:pins:*")
    again = await start()
    assert await again.listed() == [dear.module_sha256]


async def test_one_that_was_unpinned_while_redis_was_away_expires_in_the_end(
    start: Start, server: redis.Redis, valkey: RedisServer, tmp_path: Path
) -> None:
    link, dear = tmp_path / "link.sock", artifact(0)
    link.symlink_to(valkey.url.removeprefix("unix://"))
    one = await start(url=f"unix://{link}")
    await one.store(dear)
    await one.pins.pin(dear.module_sha256)
    assert ttls(server) == {"compiled": -1}
    # The next daemon with this state directory does not reach the server, and ends.
    apart = await start(url=f"unix://{tmp_path / 'nobody.sock'}")
    assert await apart.pins.unpin(dear.module_sha256) == (True, False)
    last = await start()
    await until(lambda: ttls(server)["compiled"] > 0, last)


async def test_a_look_that_is_under_way_keeps_nothing_that_a_call_unpins(
    start: Start, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start()
    assert one.redis
    await one.store(module(0))
    await one.pins.pin(module(0).sha256)
    measure, begins, goes_on = one.redis.measure, asyncio.Event(), asyncio.Event()

    async def slow(modules: Collection[str], *, keep: bool) -> dict[str, Held]:
        begins.set()
        await goes_on.wait()
        return await measure(modules, keep=keep)

    monkeypatch.setattr(one.redis, "measure", slow)
    server.expire(name_of(module(0)), 100)
    looking = asyncio.create_task(one.pins.look())
    await begins.wait()
    unpinning = asyncio.create_task(one.pins.unpin(module(0).sha256))
    await asyncio.sleep(0.1)
    goes_on.set()
    await looking
    assert await unpinning == (True, True)
    assert ttls(server)["module"] > 0


async def test_a_list_that_is_not_this_fleets_or_namespaces_counts_for_nothing(
    start: Start, server: redis.Redis
) -> None:
    one, other = await start("one"), await start("two", namespace="team")
    stranger = await start("three", sealer=sealer(THEIRS))
    digest, theirs = module(0).sha256, module(1).sha256
    name = f"wasm:pins:{digest[0]}"
    await stranger.store(module(1))
    await stranger.pins.pin(theirs)
    await one.store(module(0))
    await one.pins.pin(digest)
    assert await one.listed() == [digest]
    assert (await refused(one.pins.sparing(EvictScope(digest)))).reason is Reason.MODULE_PINNED
    stored = server.get(name)
    assert stored
    server.set(f"wasm:ns:team:pins:{digest[0]}", stored)
    assert await other.listed() == []
    for spoil in (lambda: server.lpush(name, "x"), lambda: server.set(name, b"x" * 3 * MIB)):
        server.delete(name)
        spoil()
        assert await one.listed() == [digest]
        assert server.get(name) == stored  # It is written again.
    assert ttl(server, name) > 300 * 24 * 3600


async def test_lists_are_those_of_0_6_0_both_ways(start: Start, server: redis.Redis) -> None:
    files, records = SAMPLE["file"], SAMPLE["redis"]
    stored = {name: base64.b64decode(record) for name, record in records.items()}
    for name, record in stored.items():
        server.set(name, record)
    one = await start(sealer=SAMPLED_BY)
    assert await one.listed() == SAMPLE["pinned"]
    assert one.file.read_text() == files
    server.flushall()
    again = await start(sealer=SAMPLED_BY)
    assert await again.listed() == SAMPLE["pinned"]
    assert {name: server.get(name) for name in stored} == stored


async def test_pin_refuses_what_it_cannot_keep(start: Start, server: redis.Redis) -> None:
    one = await start(url="")
    missing = await refused(one.pins.pin(A))
    assert missing.reason is Reason.MODULE_NOT_LOADED
    assert missing.message.endswith("compile it first")
    await one.store(artifact(0))
    digest, held = module(0).sha256, one.memory.usage().bytes
    one.memory.resize(2 * held - 1)
    full = await refused(one.pins.pin(digest))
    assert full.reason is Reason.PINS_FULL
    assert full.metadata == {
        "tier": "memory",
        "bytes": str(held),
        "limit_bytes": str(2 * held - 1),
    }
    assert not one.pins.is_pinned(digest)
    one.memory.resize(2 * held)
    pin, reached_redis = await one.pins.pin(digest)
    assert reached_redis  # There is nobody to tell.
    assert pin.pinned_ms <= time.time() * 1000
    again, _ = await one.pins.pin(digest)
    assert again.tiers == pin.tiers
    assert len(one.pins) == 1
    two = await start("two")
    await two.store(artifact(0))
    server.config_set("maxmemory", 30_000)
    full = await refused(two.pins.pin(digest))
    assert (full.reason, full.metadata["tier"]) == (Reason.PINS_FULL, "redis")


async def test_lists_are_bounded(start: Start) -> None:
    one = await start(url="")
    await one.store(module(0))
    one.write_file({f"{n:064x}": [1, 0] for n in range(MAX_PINS)})
    assert len(await one.listed()) == MAX_PINS
    full = await refused(one.pins.pin(module(0).sha256))
    assert full.reason is Reason.PINS_FULL
    assert "10,000" in full.message
    # So are those that remember what was unpinned.
    two = await start("two", url="")
    two.write_file({f"{n:064x}": [1, 2 + n] for n in range(MAX_PINS + 5)})
    assert await two.listed() == []
    two.file.unlink()
    assert await two.listed() == []
    assert len(two.in_file()) == MAX_PINS
    assert f"{4:064x}" not in two.in_file()
    assert f"{5:064x}" in two.in_file()
    # What was never pinned pushes out nothing that was.
    assert await two.pins.unpin(f"{0:064x}") == (False, True)
    assert two.in_file().keys() == {f"{n:064x}" for n in range(5, MAX_PINS + 5)}


async def test_the_last_change_counts_whatever_the_clock_says(start: Start) -> None:
    one = await start(url="")
    await one.store(module(0))
    digest, future_ms = module(0).sha256, int(time.time() * 1000) + 10**9
    for _ in range(3):
        await one.pins.pin(digest)
        assert (await one.pins.unpin(digest))[0]
    one.write_file({digest: [future_ms, 0]})
    assert await one.listed() == [digest]
    assert (await one.pins.unpin(digest))[0]
    assert await one.listed() == []
    await one.pins.pin(digest)
    assert await one.listed() == [digest]
    assert one.in_file() == {digest: [future_ms + 2, future_ms + 1]}


async def test_a_pin_counts_though_its_daemon_has_not_heard_of_an_unpinning_before(
    start: Start, server: redis.Redis
) -> None:
    one, two, dear = await start("one"), await start("two"), artifact(0)
    await one.store(dear)
    await one.pins.pin(dear.module_sha256)
    assert await two.listed() == [dear.module_sha256]
    await one.pins.unpin(dear.module_sha256)
    server.flushall()
    await two.pins.pin(dear.module_sha256)
    assert await one.listed() == await two.listed() == [dear.module_sha256]


async def test_an_unpin_counts_though_its_daemon_has_not_heard_of_the_pin_before(
    start: Start, valkey: RedisServer, tmp_path: Path
) -> None:
    link, digest = tmp_path / "link.sock", module(0).sha256
    one, two = await start(url=f"unix://{link}"), await start("two")
    await one.store(module(0))
    assert (await one.pins.pin(digest))[1] is False
    assert await two.pins.unpin(digest) == (False, True)
    link.symlink_to(valkey.url.removeprefix("unix://"))
    await until(lambda: not one.is_pinned(digest), one)
    assert await two.listed() == []


async def test_daemons_agree_in_whatever_order_they_hear_of_pins(start: Start) -> None:
    lists = [{A: [2, 0], B: [1, 3]}, {A: [1, 2]}, {A: [3, 1], B: [2, 2]}, {B: [0, 1]}]
    for number, order in enumerate(itertools.permutations(lists)):
        one = await start(str(number), url="")
        for heard in order:
            one.write_file(heard)
            await one.listed()
        assert await one.listed() == [A]
        assert one.in_file() == {A: [3, 2], B: [2, 3]}


async def test_of_a_malformed_list_nothing_counts(start: Start) -> None:
    one = await start(url="")
    one.file.parent.mkdir(exist_ok=True)
    times = ("[1]", "[1,-1]", "[1,true]", '["1",2]', "[253402300800000,0]")
    texts = ["[]", "{}", '{"pins":[]}', "[" * 100_000, '{"pins":{"x":[1,2]}}']
    texts += [f'{{"pins":{{"{A}":{each}}}}}' for each in times]
    for text in (*texts, f'{{"pins":{{"{A}\\n":[1,0]}}}}'):
        one.file.write_text(text)
        with capture_logs() as logs:
            assert await one.listed() == []
        assert logs[0]["event"].startswith("the list of pins is damaged"), text
    await one.store(module(0))
    await one.pins.pin(module(0).sha256)
    with capture_logs() as logs:
        assert await one.listed() == [module(0).sha256]
    assert logs == []
    # What a later version adds is passed over.
    one.file.write_text(f'{{"more":1,"pins":{{"{A}":[253402300799999,0,7]}}}}')
    assert A in await one.listed()
