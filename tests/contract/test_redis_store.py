"""The store on Redis: what it keeps, for how long, and that it believes nobody.

The first part holds for every kind of server, the second is shown on one.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.cache import redis_store, shared_tier, value
from wasmkilnd.cache.value import TRAILER_BYTES, ZSTD, written
from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Module,
)
from wasmkilnd.redis.servers import WRITE_TIMEOUT_S, Command
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.waits.budgets import Allowance

from tests.contract.redis_stores import SEALER, TTL_S, Site, site
from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import module, same, shrinking
from tests.doubles.shelf import decoded
from tests.servers.deployments import Deployment
from tests.servers.redis_server import TIMEOUT_S, RedisServer

STRANGER = sealer(THEIRS)


def artifact(
    tag: int = 0, size_bytes: int = 100, engine: str = "wasmtime", of: Module | None = None
) -> Artifact:
    return SEALER.seal(unsigned(tag, size_bytes, engine, of))


async def get(at: Site, key: CacheKey) -> Artifact | None:
    found = await get_packed(at, key)
    return decoded(found) if found else None


async def get_packed(at: Site, key: CacheKey) -> Artifact | None:
    found: Artifact | None = await at.store.get(key, Allowance(accept=frozenset({ZSTD})))
    return found


async def get_module(at: Site, sha256: str) -> Module | None:
    found: Module | None = await at.store.get(sha256, Allowance())
    return found


def bytes_of(what: Artifact | Module, signer: Sealer = SEALER) -> bytes:
    return b"".join(written(what, signer))


# For every kind of server


@pytest.fixture
async def at(deployment: Deployment) -> AsyncIterator[Site]:
    async with site(deployment.url, deployment.access) as made:
        yield made
        await made.store.evict(EvictScope())


async def test_what_is_put_comes_back_whole(at: Site) -> None:
    sizes = (0, 1, 20_000, 600_000, 5_000_000)
    artifacts = [artifact(n, size) for n, size in enumerate(sizes)]
    shrinks = [SEALER.seal(shrinking(10 + n, size)) for n, size in enumerate((20_000, 5_000_000))]
    for one in (*artifacts, *shrinks):
        assert await get(at, one.key) is None
        await at.store.put(one)
        packed = await get_packed(at, one.key)
        assert packed
        assert packed.encoding == (ZSTD if one in shrinks else "")
        assert same(decoded(packed), one)
        nameless = CacheKey(one.module_sha256, one.spec.fingerprint)
        assert same(await get(at, nameless), one)
    for tag, size_bytes in enumerate((100, 20_000, 3_000_000)):
        wasm = module(tag, size_bytes)
        assert await get_module(at, wasm.sha256) is None
        await at.store.put(wasm)
        assert await get_module(at, wasm.sha256) == wasm
    assert at.notes.rejected == []
    outcomes = {(what, outcome) for what in ("artifact", "module") for outcome in ("hit", "miss")}
    assert set(at.notes.lookups) == outcomes
    assert set(at.notes.stores) == {"ok"}
    assert await at.names("3:new:") == []
    # What was packed is stored again as it is.
    packed = await get_packed(at, one.key)
    await at.store.evict(EvictScope())
    assert packed
    await at.store.put(packed)
    again = await get_packed(at, one.key)
    assert again
    assert again.frames == packed.frames
    gone = await at.store.evict(EvictScope())
    assert (gone.artifacts, gone.modules) == (1, 0)
    assert await at.names() == []
    assert await at.store.evict(EvictScope()) == Evicted()


async def test_what_is_held_and_is_evicted_by_engine(at: Site) -> None:
    every = [artifact(tag, engine="wasmer" if tag % 4 else "wasmtime") for tag in range(20)]
    await at.store.put(module(1))
    for one in every[::2]:
        await at.store.put(one)
    for keys in (
        [one.key for one in every],
        [CacheKey(one.module_sha256, one.spec.fingerprint) for one in every],
    ):
        assert await at.store.held(keys) == frozenset(keys[::2])
    assert await at.store.held([]) == frozenset()
    asked = at.link.calls("GETRANGE")
    gone = await at.store.evict(EvictScope(engine_id="wasmer-1.0"))
    assert (gone.artifacts, gone.modules) == (5, 0)
    assert at.link.calls("GETRANGE") == asked  # No value is read.
    assert len(await at.names("3:compiled:")) == 5
    assert await get(at, every[0].key)
    assert await get_module(at, module(1).sha256)


async def test_a_module_with_many_artifacts_is_evicted_as_a_whole(at: Site) -> None:
    wasm, one = module(1), artifact(1, of=module(1))
    await at.store.put(wasm)
    members = [f"wasmtime-{each}.0:{one.spec.fingerprint}" for each in range(1200)]
    prefix = at.name(one).rpartition(b"wasmtime")[0]
    await at.run("SADD", at.set_of(wasm.sha256), *members)
    for each in members:  # Nobody looks at their bytes.
        await at.run("SET", prefix + each.encode(), "x")
    gone = await at.store.evict(EvictScope(module_sha256=wasm.sha256))
    assert (gone.artifacts, gone.modules) == (len(members), 1)
    assert await at.names() == []


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await holds():  # noqa: ASYNC110 - the server does it
            await asyncio.sleep(0.02)


async def ages(at: Site, *names: bytes) -> list[int]:
    return [await at.run("TTL", name) for name in names]


async def members(at: Site, name: bytes) -> int:
    return len(await at.run("SRANDMEMBER", name, 1000))


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_use_mends_the_set_that_a_server_evicted(
    deployment: Deployment, pinned: bool
) -> None:
    pins = {module(1).sha256} if pinned else set[str]()
    async with site(deployment.url, deployment.access, is_pinned=pins.__contains__) as at:
        await at.store.start()  # It renews what was used.
        engines = ("cranelift", "wasmer", "wasmtime")
        artifacts = [artifact(1, engine=name, of=module(1)) for name in engines]
        for what in artifacts:
            await at.store.put(what)
        of = at.set_of(module(1).sha256)
        await at.run("UNLINK", of)
        fingerprint = CacheKey(module(1).sha256, artifacts[0].key.fingerprint)
        assert await at.store.held([fingerprint]) == frozenset()
        at.store.used(module(1).sha256)
        for what in artifacts[:2]:
            at.store.used(what.key)

        async def mended() -> bool:
            [age] = await ages(at, of)
            lives = age == -1 if pins else age > TTL_S - 60
            return lives and await members(at, of) == 3

        await eventually(mended)
        assert await at.store.held([fingerprint]) == {fingerprint}
        found = await at.store.measure([module(1).sha256], keep=bool(pins))
        assert found[module(1).sha256].artifacts == 2
        # The third one, which nobody used, is not forgotten by an eviction.
        gone = await at.store.evict(EvictScope(module_sha256=module(1).sha256))
        assert gone.artifacts == 3
        assert await at.names() == []


def flipped(value: bytes, at: int) -> bytes:
    changed = bytearray(value)
    changed[at] ^= 1
    return bytes(changed)


async def test_a_key_of_another_type_is_rejected_and_gone(at: Site) -> None:
    wasm = module(1)
    one = artifact(1, of=wasm)
    for what, ask in ((one, lambda: get(at, one.key)), (wasm, lambda: get_module(at, wasm.sha256))):
        await at.run("SADD", at.name(what), "x")
        assert await ask() is None
        assert not await at.run("EXISTS", at.name(what))
        # Nor does it keep a value out, nor anything from being evicted.
        await at.run("SADD", at.name(what), "x")
        await at.store.put(what)
        assert await ask() is not None
    assert at.notes.rejected == ["format"] * 2
    await at.run("UNLINK", at.set_of(wasm.sha256))
    await at.run("SET", at.set_of(wasm.sha256), "x", "EX", 1000)
    assert (await at.store.measure([wasm.sha256], keep=False))[wasm.sha256].modules == 1
    assert (await at.store.evict(EvictScope(module_sha256=wasm.sha256))).artifacts == 1
    await at.run("SET", at.set_of(wasm.sha256), "x", "EX", 1000)
    await at.store.put(one)
    assert await at.store.held([CacheKey(one.module_sha256, one.spec.fingerprint)])
    assert at.store.write_refusal == ""
    for scope in (EvictScope(engine_id="wasmtime-1.0"), EvictScope()):
        await at.store.put(artifact(2))
        await at.run("UNLINK", at.name(one))
        await at.run("SADD", at.name(one), "x")
        assert (await at.store.evict(scope)).artifacts == 2
    assert at.link.up  # The server answers: no reason to stop asking it.


async def test_a_value_that_is_replaced_between_two_ranges_is_read_again(at: Site) -> None:
    old, new = artifact(1, 3_000_000), SEALER.seal(shrinking(1, 4_000_000))
    new = SEALER.seal(dataclasses.replace(new, spec=old.spec))
    assert old.key == new.key
    await at.store.put(old)

    async def replace_after_the_tail(command: Command) -> None:
        if command[0] == "GETRANGE" and command[1] == at.name(old) and int(command[2]) >= 0:
            at.link.before = None
            await at.run("UNLINK", at.name(old))
            for at_byte, chunk in chunked(bytes_of(new)):
                await at.run("APPEND" if at_byte else "SET", at.name(old), chunk)

    at.link.before = replace_after_the_tail
    assert same(await get(at, old.key), new)
    assert at.link.before is None
    assert at.notes.rejected == []


def chunked(value: bytes) -> Iterator[tuple[int, bytes]]:
    return ((start, value[start : start + 500_000]) for start in range(0, len(value), 500_000))


# On one server


@pytest.fixture
async def here(valkey: RedisServer) -> AsyncIterator[Site]:
    async with site(valkey.url) as made:
        yield made


SPOILT: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "somebody else's": ("format", lambda value: b"somebody else's, longer than a trailer" * 9),
    "version": (
        "version",
        lambda value: value[: 4 - TRAILER_BYTES] + b"\x02" + value[5 - TRAILER_BYTES :],
    ),
    "cut off": ("format", lambda value: value[:-1]),
    "beginning cut off": ("digest", lambda value: value[1:]),
    "half": ("format", lambda value: value[: len(value) // 2]),
    "trailer only": ("truncated", lambda value: value[-TRAILER_BYTES:]),
    "short": ("truncated", lambda value: value[-9:]),
    "appended": ("format", lambda value: value + b"x"),
    "prepended": ("digest format", lambda value: b"x" + value),
    "first frame": ("digest", lambda value: flipped(value, 0)),
    "middle": ("digest", lambda value: flipped(value, len(value) // 2)),
    "header": ("digest", lambda value: flipped(value, -TRAILER_BYTES - 10)),
    "digest": ("digest", lambda value: flipped(value, -100)),
    "stamp": ("mismatch", lambda value: flipped(value, -1)),
    "another's": ("wrong_key", lambda value: bytes_of(artifact(2))),
    "a module": ("wrong_key", lambda value: bytes_of(module(1))),
}


@pytest.mark.parametrize("how", SPOILT)
async def test_no_spoilt_value_is_served(here: Site, how: str) -> None:
    causes, spoil = SPOILT[how]
    for one in (artifact(1, 2_500_000), SEALER.seal(shrinking(3, 2_500_000))):
        await here.run("UNLINK", here.name(one))
        await here.store.put(one)
        await here.run("SET", here.name(one), spoil(await here.value(one)))
        with capture_logs() as logs:
            assert await get(here, one.key) is None
        cause = here.notes.rejected.pop()
        assert cause in causes.split()
        assert [(log["event"], log["cause"]) for log in logs] == [("stored value rejected", cause)]
        assert await here.run("EXISTS", here.name(one)) == 0
    assert here.link.up


async def test_values_of_another_fleet_are_told_once(here: Site, valkey: RedisServer) -> None:
    many = [STRANGER.seal(unsigned(tag)) for tag in range(5)]
    async with site(valkey.url, prefix=here.store.prefix, signer=STRANGER) as theirs:
        for one in many:
            await theirs.store.put(one)
    with capture_logs() as logs:
        for one in many:
            assert await get(here, one.key) is None
    assert here.notes.rejected == ["stranger"] * 5
    assert [log["log_level"] for log in logs] == ["warning"] + ["debug"] * 4


async def test_a_value_that_is_empty_or_deleted_while_it_is_read_is_a_miss(here: Site) -> None:
    one = artifact(1, 3_000_000)
    await here.run("SET", here.name(one), b"")
    assert await get(here, one.key) is None
    await here.store.put(one)
    assert same(await get(here, one.key), one)

    async def deleted(command: Command) -> None:
        if command[0] == "GETRANGE" and int(command[2]) >= 0:
            here.link.before = None
            await here.run("UNLINK", here.name(one))

    here.link.before = deleted
    assert await get(here, one.key) is None
    assert here.notes.rejected == []


async def test_values_are_written_in_chunks_under_a_name_that_ends(
    here: Site, valkey: RedisServer
) -> None:
    first, second = artifact(1, 3_000_000), artifact(1, 2000)
    await here.store.put(first)
    waits = {wait for name, wait in here.link.waits if name not in ("EXISTS", "STRLEN")}
    assert waits == {WRITE_TIMEOUT_S}  # A write may take longer than a read.
    names = [command[0] for command in here.link.asked]
    begin, end = names.index("SET"), names.index("RENAMENX")
    assert set(names[begin + 1 : end]) == {"APPEND"}  # Nothing is asked between.
    writes = [(command[1], command[2]) for command in here.link.asked[begin:end]]
    assert len(writes) >= 6
    assert all(isinstance(data, bytes) and len(data) <= 600_000 for _, data in writes)
    [new] = {name for name, _ in writes}
    assert isinstance(new, bytes)
    assert new.startswith(f"{here.store.prefix}3:new:{{{first.module_sha256}}}:".encode())
    # Of two writers the first wins, and both succeed.
    await here.run("UNLINK", here.name(first))
    async with site(valkey.url, prefix=here.store.prefix) as other:
        here.link.once_before("RENAMENX", lambda: other.store.put(first))
        await here.store.put(second)
    assert same(await get(here, second.key), first)
    assert await here.names("3:new:") == []
    assert set(here.notes.stores) == {"ok"}


async def test_ranges_are_small_and_read_no_byte_twice(here: Site) -> None:
    one = artifact(1, 7_000_000)
    await here.store.put(one)
    value_bytes = len(await here.value(one))
    here.link.asked.clear()
    assert same(await get(here, one.key), one)
    [(_, _, tail_start, _), *ranges] = here.link.asked
    assert {command[0] for command in here.link.asked} == {"GETRANGE"}
    sizes = [int(end) - int(start) + 1 for _, _, start, end in ranges]
    assert max(sizes) <= 1 << 20
    assert -int(tail_start) <= 5 << 18
    assert sum(sizes) <= 7_000_000
    assert sum(sizes) - int(tail_start) < value_bytes + 600_000


async def test_a_writer_that_dies_leaves_what_expires_and_nobody_reads(here: Site) -> None:
    one = artifact(1, 3_000_000)
    for command in ("APPEND", "RENAMENX"):
        reached = asyncio.Event()

        async def die(reached: asyncio.Event = reached) -> None:
            reached.set()
            await asyncio.sleep(3600)

        here.link.once_before(command, die)
        writing = asyncio.create_task(here.store.put(one))
        await reached.wait()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        [left] = await here.names()
        assert left.startswith(f"{here.store.prefix}3:new:".encode())
        assert 0 < await here.run("TTL", left) <= 600
        assert await get(here, one.key) is None
        assert await here.store.held([one.key]) == frozenset()
        await here.run("UNLINK", left)
    await here.store.put(one)
    assert same(await get(here, one.key), one)
    assert here.notes.rejected == []


async def test_a_value_that_lost_its_beginning_is_not_stored(here: Site) -> None:
    one = artifact(1, 3_000_000)

    async def lose() -> None:
        await here.run("UNLINK", *await here.names("3:new:"))

    here.link.once_before("APPEND", lose)
    with pytest.raises(TierUnavailable):
        await here.store.put(one)
    assert await here.names() == []
    assert await get(here, one.key) is None
    assert here.notes.rejected == []


async def test_what_is_larger_than_the_limit_is_left_to_others(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_bytes = 1_000_000
    async with site(valkey.url, limit_bytes=lambda: limit_bytes) as at:
        one, wasm = artifact(1, 1_000_001), module(1, 1_000_001)
        shrunk = SEALER.seal(shrinking(2, 100_000_000))
        for what in (one, shrunk, wasm):
            await at.store.put(what)
        assert await get(at, one.key) is None
        with monkeypatch.context() as nothing_is_unpacked:
            nothing_is_unpacked.setattr(value, "unpacked", None)
            assert await at.store.get(shrunk.key, Allowance()) is None
        assert await get_module(at, wasm.sha256) is None
        assert await at.run("EXISTS", at.name(one)) + await at.run("EXISTS", at.name(wasm)) == 2
        assert at.notes.rejected == []
        limit_bytes += 1
        assert same(await get(at, one.key), one)
        assert await get_module(at, wasm.sha256) == wasm


async def test_headers_of_any_length_but_too_long_ones(here: Site) -> None:
    row = unsigned().imports[0]
    long = [
        SEALER.seal(dataclasses.replace(unsigned(count, 2000), imports=(row,) * count))
        for count in (1, 1000, 40_000)
    ]
    for one in long:
        await here.store.put(one)
        assert same(await get(here, one.key), one)
    assert len(await here.value(long[-1])) > 1_200_000
    too_long = SEALER.seal(dataclasses.replace(unsigned(9), imports=(row,) * 200_000))
    with pytest.raises(DoesNotFit):
        await here.store.put(too_long)
    assert here.notes.stores[-1] == "too_large"
    assert here.store.write_refusal == ""
    assert await get(here, too_long.key) is None


async def test_what_the_server_takes_in_no_value_is_told_and_leaves_nothing(
    here: Site, server: redis.Redis
) -> None:
    server.config_set("proto-max-bulk-len", 1024 * 1024)
    large, small = artifact(1, 3_000_000), artifact(2, 700_000)
    try:
        with capture_logs() as lines, pytest.raises(DoesNotFit):
            await here.store.put(large)
        await here.store.put(small)
    finally:
        server.config_set("proto-max-bulk-len", 512 * 1024 * 1024)
    assert here.notes.stores == ["too_large", "ok"]
    assert [line["event"] for line in lines] == [
        "value not shared: the tier does not take one of its size"
    ]
    assert here.store.refusal == ""
    assert await here.names("3:new") == []
    assert same(await get(here, small.key), small)


async def test_a_full_server_is_left_no_part_of_a_value(here: Site, server: redis.Redis) -> None:
    server.config_set("maxmemory-policy", "noeviction")
    # Room for the first part, and for no more.
    server.config_set("maxmemory", server.info("memory")["used_memory"] + 1_500_000)
    with pytest.raises(TierUnavailable, match="full"):
        await here.store.put(artifact(1, 6_000_000))
    assert here.link.calls("APPEND") > 0
    server.config_set("maxmemory", 0)
    assert await here.names("3:new") == []


async def test_a_large_value_has_the_time_of_a_slow_line(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = artifact(1, 6_000_000)
    monkeypatch.setattr(redis_store, "WRITE_TIMEOUT_S", 1.0)

    async def slow(command: Command) -> None:
        if command[0] == "APPEND" or (command[0] == "GETRANGE" and int(command[2]) >= 0):
            await asyncio.sleep(0.25)

    async with site(valkey.url, timeout_s=1.0) as at:
        at.link.before = slow
        monkeypatch.setattr(shared_tier, "WRITTEN_BYTES_PER_S", 10**12)
        with pytest.raises(TierUnavailable, match="too long"):
            await at.store.put(large)
        monkeypatch.setattr(shared_tier, "WRITTEN_BYTES_PER_S", 100_000)
        await at.store.put(large)
        monkeypatch.setattr(shared_tier, "READ_BYTES_PER_S", 10**12)
        with capture_logs() as lines, pytest.raises(TierUnavailable, match="too long"):
            await at.store.get(large.key, Allowance())
        assert [line["event"] for line in lines] == ["value not read: it takes too long"]
        monkeypatch.setattr(shared_tier, "READ_BYTES_PER_S", 100_000)
        assert same(await get(at, large.key), large)


async def test_eviction_reads_prefix_and_engine_as_text(valkey: RedisServer) -> None:
    async with site(valkey.url, prefix="[a]*?:") as at:
        # Keys that the prefix would match, were it taken for a pattern, and near misses.
        digest = "a" * 64
        others = [
            f"{prefix}3:{rest}"
            for prefix in ("a*?:", "ax:", "x[a]*?:")
            for rest in (f"compiled:{{{digest}}}:e-1:{digest}", f"module:{{{digest}}}")
        ]
        others += [
            f"[a]*?:{rest}"
            for rest in (
                f"3:lease:{{{digest}}}:{digest}",
                f"3:compiled:{{{digest}}}:e-1:{digest}x",
                f"3:compiled:{{{digest}}}",
                "3:compiled:",
                "3:module:foo",
                f"3:module:{{{digest}}}:x",
                f"compiled:{{{digest}}}:{digest}",
                "pins:0",
            )
        ]
        for other in others:
            await at.run("SET", other, b"kept")
        await at.store.put(artifact(1, engine="wasm?ime"))
        await at.store.put(artifact(2, engine="wasmtime"))
        gone = await at.store.evict(EvictScope(engine_id="wasm?ime-1.0"))
        assert gone.artifacts == 1
        assert (await at.store.evict(EvictScope())).artifacts == 1
        assert await at.run("EXISTS", *others) == len(others)
        await at.run("UNLINK", *others)


async def test_evicting_a_module_scans_nothing(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag in range(20):
        await here.store.put(artifact(tag))
    here.link.asked.clear()
    monkeypatch.setattr(here.link, "scan", None)
    assert (await here.store.evict(EvictScope(module_sha256=module(7).sha256))).artifacts == 1
    assert len(here.link.asked) < 10


async def test_a_burst_of_readers_waits_its_turn(here: Site) -> None:
    many = [artifact(tag, 200_000) for tag in range(30)]
    for one in many:
        await here.store.put(one)
    under_way = most = 0
    read = here.link.run

    async def counted(*commands: Command, timeout_s: float | None = None) -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        try:
            return await read(*commands, timeout_s=timeout_s)
        finally:
            under_way -= 1

    here.link.run = counted  # type: ignore[method-assign, assignment]
    allowances = [Allowance() for _ in many]
    found = await asyncio.gather(
        *(here.store.get(one.key, each) for one, each in zip(many, allowances, strict=True))
    )
    assert all(same(got, one) for got, one in zip(found, many, strict=True))
    assert most <= 8
    # Those that waited are granted the wait, which is this daemon's.
    assert max(each.seconds for each in allowances) > min(each.seconds for each in allowances)
