"""Daemons on one server each keep a record of uses; together these are the fleet's sums."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.use_store import PLACES, UseStore
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.uses import UsedSpec, Uses

from tests.contract.sealing import THEIRS, sealer
from tests.servers.redis_server import binary_of, redis_server

SPEC = UsedSpec("wasmtime-49.0.0", "x86_64-unknown-linux-gnu", "baseline", ())
ONE, TWO = ("1" * 64, SPEC), ("2" * 64, SPEC)
NAMES = KeyNames("wasm:")
LONG_AGO_S = 3 * 3600.0


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[GuardedRedis]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        opened = GuardedRedis(connect(running.url, timeout_s=5), timeout_s=5, longest_wait_s=1)
        yield opened
        await opened.close()


def daemon(link: GuardedRedis, ours: Sealer | None = None) -> UseStore:
    return UseStore(link, NAMES, ours or sealer())


def counted(ago_s: float = 0.0, **counts: float) -> Uses:
    by_name = {"one": ONE, "two": TWO}
    return Uses({by_name[name]: count for name, count in counts.items()}, time.time() - ago_s)


def rounded(uses: Uses) -> dict[str, float]:
    return {use[0][:1]: round(count, 1) for use, count in uses.counts.items()}


async def taken(link: GuardedRedis) -> int:
    return sum(await link.exists([NAMES.uses(place) for place in range(PLACES)]))


async def test_each_writes_its_own_sums_and_reads_those_of_the_others(link: GuardedRedis) -> None:
    first, second, third = daemon(link), daemon(link), daemon(link)
    await first.save(counted(one=1.0))
    await second.save(counted(one=2.0, two=1.0))
    await first.save(counted(one=3.0))
    assert await taken(link) == 2
    assert rounded(await first.of_others()) == {"1": 2.0, "2": 1.0}
    assert rounded(await second.of_others()) == {"1": 3.0}
    assert rounded(await third.of_others()) == {"1": 5.0, "2": 1.0}


async def test_what_one_left_the_next_takes_over_once(link: GuardedRedis) -> None:
    await daemon(link).save(counted(LONG_AGO_S, two=4.0))
    await daemon(link).save(counted(one=4.0), last=True)
    living = daemon(link)
    await living.save(counted(one=1.0))
    # That one took over what there was; the next finds nothing.
    assert await taken(link) == 1
    after = await daemon(link).save(counted())
    assert rounded(after) == {}
    assert rounded(await daemon(link).of_others()) == {"1": 5.0, "2": 3.7}


async def test_a_record_that_was_copied_from_another_namespace_says_nothing(
    link: GuardedRedis,
) -> None:
    ours, theirs = KeyNames("wasm:"), KeyNames("wasm:ns:other:")
    await UseStore(link, theirs, sealer()).save(counted(one=1.0))
    for place in range(PLACES):
        (value,) = await link.beginnings([theirs.uses(place)], [100_000])
        if value:
            await link.set(ours.uses(place), value, 100)
    assert await taken(link) == 1
    assert rounded(await daemon(link).of_others()) == {}
    assert rounded(await UseStore(link, theirs, sealer()).of_others()) == {"1": 1.0}


async def test_one_whose_record_is_lost_writes_it_again(link: GuardedRedis) -> None:
    first, second = daemon(link), daemon(link)
    await first.save(counted(one=1.0))
    await link.delete([NAMES.uses(place) for place in range(PLACES)])
    await first.save(counted(one=2.0))
    await second.save(counted(two=1.0))
    assert rounded(await daemon(link).of_others()) == {"1": 2.0, "2": 1.0}


async def test_one_whose_place_another_took_finds_a_new_one(link: GuardedRedis) -> None:
    first = daemon(link)
    await first.save(counted(one=1.0))
    [place] = [n for n in range(PLACES) if (await link.exists([NAMES.uses(n)]))[0]]
    await link.delete([NAMES.uses(place)])
    other = daemon(link)
    other._place = place
    await other.save(counted(two=1.0))
    for _ in range(2):  # The first look finds the other's record; the next write is elsewhere.
        await first.save(counted(one=2.0))
    assert rounded(await daemon(link).of_others()) == {"1": 2.0, "2": 1.0}


async def test_strangers_records_and_other_types_do_not_count(link: GuardedRedis) -> None:
    # First, as a daemon picks its place at random among those that are free.
    await link.run([(lambda reply: reply, ("LPUSH", NAMES.uses(7), "x"))])
    await daemon(link, sealer(THEIRS)).save(counted(one=1e6))
    ours = daemon(link)
    assert rounded(await ours.of_others()) == {}
    await link.set(NAMES.uses(8), b"x" * 3_000_000, 60)
    await ours.save(counted(two=1.0))
    assert rounded(await daemon(link).of_others()) == {"2": 1.0}
    assert await taken(link) == 1


async def test_where_every_place_is_taken_one_only_counts_for_itself(link: GuardedRedis) -> None:
    first = daemon(link)
    await first.save(counted(one=1.0))
    [place] = [n for n in range(PLACES) if (await link.exists([NAMES.uses(n)]))[0]]
    [record] = await link.beginnings([NAMES.uses(place)], [1000])
    for other in range(PLACES):
        await link.set(NAMES.uses(other), record, 60)
    late = daemon(link)
    assert rounded(await late.save(counted(two=1.0))) == {"2": 1.0}
    assert await taken(link) == PLACES
