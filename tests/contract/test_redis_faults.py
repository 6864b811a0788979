"""What the Redis tier does beyond a tier's promises: keys, verification, sick servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.fingerprint import CACHE_FORMAT
from wasmkilnd.model import Artifact, CacheKey, EvictScope, Refusal

from tests.contract.values import artifact, module, same
from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer, binary_of, free_ports, redis_server

TTL_S = 7 * 24 * 3600


class Seal(NoSealer):
    """A sealer that trusts one attestation, and counts how often it is asked."""

    def __init__(self) -> None:
        self.trusted = b""
        self.asked = 0

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        self.asked += 1
        if artifact.attestation.startswith(b"!"):
            raise ValueError("not an envelope")
        if artifact.attestation == self.trusted:
            return None
        return Refusal("stranger", "a stranger signed it")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that these tests share, each under its own prefix."""
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def seal() -> Seal:
    return Seal()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix of this test's own, full of what a pattern must not read as one."""
    return f"[{abs(hash(request.node.nodeid))}]*?:"


@pytest.fixture
async def raw(valkey: RedisServer) -> AsyncIterator[Redis]:
    """Somebody else's client of the shared server."""
    client = Redis.from_url(valkey.url)
    yield client
    await client.aclose()


@pytest.fixture
async def tier(
    valkey: RedisServer, notes: Notes, seal: Seal, prefix: str
) -> AsyncIterator[RedisTier]:
    """A tier over the shared server."""
    async with tier_over(valkey.url, notes=notes, seal=seal, prefix=prefix) as made:
        yield made


@contextlib.asynccontextmanager
async def tier_over(
    url: str,
    *,
    timeout_s: float = 5.0,
    prefix: str = "wasm:",
    notes: Notes | None = None,
    seal: Seal | None = None,
) -> AsyncIterator[RedisTier]:
    """Open a tier that is quick to come back."""
    made = RedisTier(
        connect(url, timeout_s=timeout_s),
        seal or Seal(),
        notes or Notes(),
        prefix=prefix,
        timeout_s=timeout_s,
        first_wait_s=0.01,
        longest_wait_s=0.02,
    )
    try:
        yield made
    finally:
        await made.close()


def name_of(one: Artifact, prefix: str) -> str:
    """Return under which key an artifact is stored."""
    return f"{prefix}compiled:{{{one.module_sha256}}}:{one.spec.fingerprint}"


async def test_keys_and_time_to_live(valkey: RedisServer, raw: Redis) -> None:
    one, wasm = artifact(71), module(71)
    async with tier_over(valkey.url) as tier:
        await tier.put(one)
        await tier.put_module(wasm)
        keys = [
            f"wasm:compiled:{{{one.module_sha256}}}:{one.spec.fingerprint}",
            f"wasm:module:{{{wasm.sha256}}}",
        ]
        for key in keys:
            assert TTL_S - 60 < await raw.ttl(key) <= TTL_S
        assert (await tier.evict(EvictScope())).artifacts == 1
        assert await raw.exists(*keys) == 0


async def test_eviction_reads_its_prefix_as_text(tier: RedisTier, raw: Redis, prefix: str) -> None:
    # Keys that the prefix would match, were it taken for a pattern, and near misses.
    others = [f"{prefix[1]}{prefix[2]}x:compiled:{{a}}:b", f"x{prefix}compiled:{{a}}:b"]
    others += [f"{prefix}lease:x", f"{prefix}compile"]
    for other in others:
        await raw.set(other, b"")
    await tier.put(artifact())
    assert (await tier.evict(EvictScope())).artifacts == 1
    assert await raw.exists(*others) == len(others)


async def test_engines_are_found_in_headers_of_any_length(tier: RedisTier) -> None:
    externs = artifact().imports * 300
    long = [
        dataclasses.replace(artifact(tag, engine=engine), imports=externs[: tag * 100])
        for tag in range(4)
        for engine in ("wasmer", "wasmtime")
    ]
    for one in long:
        await tier.put(one)
    assert (await tier.evict(EvictScope(engine_id="wasmer-1.0"))).artifacts == 4
    left = {one.key for one in long if one.spec.engine.name == "wasmtime"}
    assert await tier.held([one.key for one in long]) == left
    assert await tier.kinds_of([one.key for one in long]) == dict.fromkeys(left, long[0].kind)


@pytest.mark.parametrize(
    ("cause", "spoil"),
    [
        ("format", lambda value: b"a value of somebody else, and longer than what comes first"),
        ("version", lambda value: value[:4] + b"\x01" + value[5:]),
        ("version", lambda value: value[:4] + b"\x03" + value[5:]),
        ("truncated", lambda value: value[:-1]),
        ("truncated", lambda value: value[:60]),
        ("format", lambda value: value + b"x"),
        ("digest", lambda value: value[:-1] + bytes([value[-1] ^ 1])),
        ("digest", lambda value: value[:200] + bytes([value[200] ^ 1]) + value[201:]),
    ],
)
@pytest.mark.parametrize("size_bytes", [100, 100_000])
async def test_a_spoilt_value_is_deleted_counted_logged_and_a_miss(
    tier: RedisTier,
    raw: Redis,
    prefix: str,
    notes: Notes,
    cause: str,
    spoil: Callable[[bytes], bytes],
    size_bytes: int,
) -> None:
    one = artifact(size_bytes=size_bytes)
    await tier.put(one)
    key = name_of(one, prefix)
    value = await raw.get(key)
    assert isinstance(value, bytes)
    await raw.set(key, spoil(value))
    with capture_logs() as logs:
        assert await tier.get(one.key) is None
    assert notes.rejected == [cause]
    assert [(log["event"], log["cause"]) for log in logs] == [("stored value rejected", cause)]
    assert await raw.exists(key) == 0


async def test_a_value_swapped_from_another_key_is_rejected(
    tier: RedisTier, raw: Redis, prefix: str, notes: Notes
) -> None:
    one, two, wasm, other = artifact(1), artifact(2), module(3), module(4)
    await tier.put(one)
    await tier.put_module(wasm)
    names = [name_of(one, prefix), name_of(two, prefix)]
    names += [f"{prefix}module:{{{each.sha256}}}" for each in (wasm, other)]
    await raw.copy(names[0], names[1])
    await raw.copy(names[2], names[3])
    assert await tier.get(two.key) is None
    assert await tier.get_module(other.sha256) is None
    await raw.copy(names[0], names[3])  # Not even of the same sort.
    assert await tier.get_module(other.sha256) is None
    assert notes.rejected == ["wrong_key"] * 3
    assert await raw.exists(*names) == 2


@pytest.mark.parametrize(
    ("attestation", "cause"), [(b"a stranger's", "stranger"), (b"!no envelope at all", "mismatch")]
)
async def test_what_nobody_trusted_vouches_for_is_rejected(
    tier: RedisTier, seal: Seal, notes: Notes, attestation: bytes, cause: str
) -> None:
    seal.trusted = b"ours"
    good = dataclasses.replace(artifact(1), attestation=b"ours")
    bad = dataclasses.replace(artifact(2), attestation=attestation)
    for one in (good, bad):
        await tier.put(one)
    assert same(await tier.get(good.key), good)
    assert await tier.get(bad.key) is None
    assert notes.rejected == [cause]
    assert await tier.held([good.key, bad.key]) == {good.key}


async def test_a_key_of_another_type_is_rejected_and_gone(
    tier: RedisTier, raw: Redis, prefix: str, notes: Notes
) -> None:
    one, wasm = artifact(size_bytes=1_500_000), module(5)
    await tier.put(one)
    await tier.put_module(wasm)
    # The value itself, a piece of it, and a module.
    ours, theirs = tier.names.artifact(one.key), tier.names.module(wasm.sha256)
    names = [ours, *await pieces_of(raw, prefix), theirs]
    for name in names:
        await tier.put(one)
        await raw.delete(name)
        await raw.lpush(name, "x")
        found: object = await tier.get(one.key)
        if name == names[-1]:
            assert same(await tier.get(one.key), one)
            found = await tier.get_module(wasm.sha256)
        assert found is None
        assert not await raw.exists(name)
    assert notes.rejected == ["format"] * len(names)
    assert tier.breaker.up  # The server answers: no reason to stop asking it.


async def pieces_of(raw: Redis, prefix: str) -> list[bytes]:
    """Return the names of all pieces under a prefix; there are some."""
    found = [name async for name in raw.scan_iter() if name.startswith(f"{prefix}part:".encode())]
    assert found
    return found


@pytest.mark.parametrize("scope", [EvictScope(), EvictScope(engine_id="wasmtime-1.0")])
async def test_keys_of_another_type_keep_no_eviction_from_its_work(
    tier: RedisTier, raw: Redis, scope: EvictScope
) -> None:
    stored = [artifact(tag) for tag in range(5)]
    for one in stored:
        await tier.put(one)
    wrong = tier.names.artifact(artifact(9).key)
    await raw.lpush(wrong, "x")
    assert (await tier.evict(scope)).artifacts >= len(stored)
    assert await tier.held([one.key for one in stored]) == frozenset()
    assert bool(await raw.exists(wrong)) is bool(scope.engine_id)


async def test_an_outage_is_told_once_and_so_is_its_end(tmp_path: Path) -> None:
    one = artifact()
    with capture_logs() as logs, redis_server(binary_of("valkey"), tmp_path) as running:
        async with tier_over(running.url) as tier:
            assert await tier.start()
            running.process.kill()
            running.process.wait()
            for _ in range(5):
                with pytest.raises(TierUnavailable):
                    await tier.get(one.key)
            with redis_server(binary_of("valkey"), tmp_path):
                await tier.breaker.wait_closed()
                await tier.put(one)
    assert [log["event"] for log in logs] == ["tier is down", "tier is up again"]


async def test_a_hung_server_costs_one_time_out_and_no_more(tmp_path: Path) -> None:
    one = artifact(size_bytes=3_000_000)
    with redis_server(binary_of("valkey"), tmp_path) as running:
        async with tier_over(running.url, timeout_s=0.5) as tier:
            await tier.put(one)
            running.process.send_signal(signal.SIGSTOP)
            # More callers than there are connections.
            asked = await asyncio.gather(
                *(tier.get(one.key) for _ in range(50)), return_exceptions=True
            )
            assert all(isinstance(answer, TierUnavailable) for answer in asked)
            assert tier.breaker.open
            with pytest.raises(TierUnavailable):
                # Would time out first, were it to reach the network.
                await asyncio.wait_for(tier.get(one.key), 0.2)
            running.process.send_signal(signal.SIGCONT)
            await tier.breaker.wait_closed()
            assert same(await tier.get(one.key), one)


async def test_a_write_that_is_cut_off_stores_nothing_and_spoils_no_connection(
    tmp_path: Path,
) -> None:
    one = artifact(size_bytes=8_000_000)
    with redis_server(binary_of("valkey"), tmp_path) as running:
        async with tier_over(running.url) as tier:
            running.process.send_signal(signal.SIGSTOP)
            writing = asyncio.create_task(tier.put(one))
            await asyncio.sleep(0.05)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            running.process.send_signal(signal.SIGCONT)
            assert await tier.get(one.key) is None
            await tier.put(one)
            assert same(await tier.get(one.key), one)


async def test_a_server_with_room_again_is_told_though_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.redis.tier._LOOK_EVERY_S", 0.05)
    limits = ["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]
    with redis_server(binary_of("valkey"), tmp_path, limits) as running:
        async with tier_over(running.url) as tier, Redis.from_url(running.url) as raw:
            assert await tier.start()
            with pytest.raises(TierUnavailable):
                await tier.put(artifact(1, 2_000_000))
            await asyncio.sleep(0.5)
            assert "maxmemory" in tier.write_refusal  # It is asked again and again.
            await raw.config_set("maxmemory", "64mb")
            for _ in range(400):
                await asyncio.sleep(0.05)
                trials = [name async for name in raw.scan_iter() if b":trial" in name]
                if not tier.write_refusal and not trials:
                    break
            assert (tier.write_refusal, trials) == ("", [])


async def test_a_full_server_goes_on_being_read(tmp_path: Path) -> None:
    limits = ["--maxmemory", "32mb", "--maxmemory-policy", "noeviction"]
    small, large = artifact(1), module(2)
    with redis_server(binary_of("valkey"), tmp_path, limits) as running:
        async with tier_over(running.url) as tier:
            with capture_logs() as logs:
                await tier.put(small)
                for tag in range(20):
                    with contextlib.suppress(TierUnavailable):
                        await tier.put(artifact(tag, 4_000_000, f"e{tag}", of=large))
                assert "maxmemory" in tier.write_refusal
                assert tier.breaker.up
                assert same(await tier.get(small.key), small)
                await tier.evict(EvictScope(module_sha256=large.sha256))
                await tier.put(small)
            assert tier.write_refusal == ""
            assert [log["event"] for log in logs] == [
                "tier takes no writes",
                "tier takes writes again",
            ]


async def test_a_wrong_password_is_nowhere_in_what_is_told(tmp_path: Path) -> None:
    settings = ["--requirepass", "right"]
    with redis_server(binary_of("valkey"), tmp_path, settings) as running:
        url = running.url.replace("unix://", "unix://:wrong-secret@")
        async with tier_over(url) as tier:
            with capture_logs() as logs, pytest.raises(TierUnavailable) as raised:
                await tier.get(artifact().key)
            error = raised.value
            told = f"{error!r} {error.__cause__!r} {logs} {tier.breaker.detail}"
            assert "wrong-secret" not in told
            assert error.__suppress_context__


async def test_a_password_that_a_server_repeats_is_nowhere_in_what_is_told(tmp_path: Path) -> None:
    [port] = free_ports(1)
    settings = ["--rename-command", "AUTH", ""]
    with redis_server(binary_of("redis-server"), tmp_path, settings, port=port):
        async with tier_over(f"redis://app:hunter2@127.0.0.1:{port}") as tier:
            with capture_logs() as logs, pytest.raises(TierUnavailable) as raised:
                await tier.get(artifact().key)
            told = f"{raised.value!r} {raised.value.__cause__!r} {logs} {tier.breaker.detail}"
            assert "hunter2" not in told
            assert not tier.breaker.up


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b":7\r\n", b"*1\r\n"])
@pytest.mark.parametrize("asked", ["get", "put", "evict"])
async def test_a_server_that_talks_something_else_is_down(answer: bytes, asked: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while answer and await reader.read(65536):
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    one = artifact()
    try:
        async with tier_over(url, timeout_s=0.2) as tier:
            asking: dict[str, Callable[[], Awaitable[object]]] = {
                "get": lambda: tier.get(one.key),
                "put": lambda: tier.put(one),
                "evict": lambda: tier.evict(EvictScope()),
            }
            with pytest.raises(TierUnavailable):
                await asking[asked]()
            assert not tier.breaker.up
    finally:
        server.close()
        await server.wait_closed()


async def test_usage_is_what_the_server_says(tier: RedisTier) -> None:
    await tier.put(artifact())
    assert tier.usage().entries == 0
    assert await tier.start()
    assert tier.usage().entries > 0
    assert tier.usage().bytes > 0


async def test_a_user_who_may_little_is_enough(
    valkey: RedisServer, raw: Redis, prefix: str
) -> None:
    allowed = "+set +unlink +exists +getrange +strlen +scan"
    await raw.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "poor", "on", ">secret", "~*", *allowed.split()
    )
    url = valkey.url.replace("unix://", "unix://poor:secret@")
    one = artifact()
    async with tier_over(url, prefix=prefix) as tier:
        assert await tier.start()  # Without DBSIZE, INFO and CLIENT.
        await tier.put(one)
        assert same(await tier.get(one.key), one)
        assert tier.usage().limit_bytes == 0
        assert (await tier.evict(EvictScope(engine_id=one.spec.engine.id))).artifacts == 1


async def test_the_client_tells_its_name(tier: RedisTier, raw: Redis) -> None:
    await tier.start()
    me = await raw.client_id()
    others = [client for client in await raw.client_list() if int(client["id"]) != me]
    assert {client["name"] for client in others} == {"wasmkiln"}


async def test_nothing_that_managed_services_refuse_is_asked(
    tier: RedisTier, raw: Redis, seal: Seal
) -> None:
    await raw.execute_command("CONFIG", "RESETSTAT")  # type: ignore[no-untyped-call]
    one = artifact()
    await tier.start()
    await tier.put(one)
    await tier.get(one.key)
    await tier.kinds_of([one.key])
    await tier.held([one.key])
    await tier.evict(EvictScope(engine_id="x-1"))
    await tier.evict(EvictScope())
    await tier.evict(EvictScope(module_sha256=one.module_sha256))
    asked = set(await raw.info("commandstats"))
    allowed = "set unlink exists getrange strlen scan dbsize info ping client|setname"
    extra = {"cmdstat_config|resetstat", "cmdstat_client|setinfo", "cmdstat_hello", "cmdstat_auth"}
    assert asked <= {f"cmdstat_{command}" for command in allowed.split()} | extra


async def test_renewing_prolongs_every_key_of_an_artifact_and_its_module(
    tier: RedisTier, raw: Redis, prefix: str
) -> None:
    wasm = module(1, 1_200_000)
    one = artifact(1, 1_200_000, of=wasm)
    await tier.put(one)
    await tier.put_module(wasm)
    names = [name async for name in raw.scan_iter() if name.startswith(prefix.encode())]
    assert len(names) == 6
    for name in names:
        await raw.expire(name, 100)
    await tier.renew(one.key)
    assert all([await raw.ttl(name) >= TTL_S - 60 for name in names])
    for name in names:
        await raw.expire(name, 100)
    await tier.renew(wasm.sha256)
    renewed = [name for name in names if await raw.ttl(name) >= TTL_S - 60]
    assert len(renewed) == 3
    assert not [name for name in renewed if name.startswith(f"{prefix}compiled".encode())]
    await tier.renew(artifact(2).key)  # What is not there is no failure.


async def test_a_lost_piece_makes_a_miss_and_the_next_put_mends_it(
    tier: RedisTier, raw: Redis, prefix: str, notes: Notes
) -> None:
    wasm = module(1, 1_200_000)
    one = artifact(1, 1_200_000, of=wasm)
    for _ in range(2):
        await tier.put(one)
        await tier.put_module(wasm)
        assert same(await tier.get(one.key), one)
        assert await tier.get_module(wasm.sha256) == wasm
        parts = [name async for name in raw.scan_iter() if b"part:" in name]
        mine = [name for name in parts if name.startswith(prefix.encode())]
        assert len(mine) == 4
        await raw.delete(*mine)
        assert await tier.get(one.key) is None
        assert await tier.get_module(wasm.sha256) is None
        assert await raw.exists(name_of(one, prefix)) == 0
    assert notes.rejected == ["incomplete"] * 4


async def test_what_took_the_place_of_a_bad_value_is_not_deleted_with_it(
    tier: RedisTier, raw: Redis, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm = module(1, 1_200_000)
    name = tier.names.module(wasm.sha256)
    await tier.put_module(wasm)
    stored = await raw.get(name)
    assert isinstance(stored, bytes)
    delete_if = tier.link.delete_if

    async def replaced_first(*asked: Any) -> bool:
        await tier.put_module(wasm)
        return await delete_if(*asked)

    monkeypatch.setattr(tier.link, "delete_if", replaced_first)
    # Damaged in its piece, and cut off: the one that takes its place begins as both do.
    for bad in (stored[:-1] + bytes([stored[-1] ^ 1]), stored[:100]):
        await raw.set(name, bad)
        assert await tier.get_module(wasm.sha256) is None
        assert await tier.get_module(wasm.sha256) == wasm
    assert notes.rejected == ["digest", "truncated"]


async def test_evicting_takes_every_piece(tier: RedisTier, raw: Redis, prefix: str) -> None:
    async def mine() -> list[bytes]:
        return [name async for name in raw.scan_iter() if name.startswith(prefix.encode())]

    wasm = module(1, 1_200_000)
    one = artifact(1, 1_200_000, of=wasm)
    for scope, left in (
        (EvictScope(engine_id=one.spec.engine.id), 3),
        (EvictScope(module_sha256=wasm.sha256), 0),
        (EvictScope(), 0),
    ):
        await tier.put(one)
        await tier.put_module(wasm)
        gone = await tier.evict(scope)
        assert gone.artifacts == 1
        assert gone.bytes > 1_200_000
        assert len([name for name in await mine() if not tier.names.is_mark(name)]) == left


async def test_another_format_has_other_names_for_modules(
    tier: RedisTier, raw: Redis, prefix: str
) -> None:
    wasm = module(1, 1_200_000)
    await tier.put_module(wasm)
    ours = {name async for name in raw.scan_iter() if name.startswith(prefix.encode())}
    own = tier.names

    def name_values_by(names: KeyNames) -> None:
        tier.names = tier._writer._names = names
        tier._lookups._names = tier._lookups._reader._names = names

    name_values_by(KeyNames(prefix, CACHE_FORMAT + 1))
    assert await tier.get_module(wasm.sha256) is None
    await tier.put_module(wasm)
    assert await tier.get_module(wasm.sha256) == wasm
    both = {name async for name in raw.scan_iter() if name.startswith(prefix.encode())}
    assert ours < both
    assert len(both) == 2 * len(ours)
    name_values_by(own)
    assert await tier.get_module(wasm.sha256) == wasm
    # Who evicts a module means all of it.
    gone = await tier.evict(EvictScope(module_sha256=wasm.sha256))
    assert gone.modules == 2
    assert await raw.exists(*both) == 0
