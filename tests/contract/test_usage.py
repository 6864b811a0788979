"""Uses are counted, fade and are bounded; daemons on one server or one disk add theirs up.

Texts here are laid out as 0.6.0 writes and reads them.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.usage import HALF_LIFE_S, MAX_USES, PLACES, Usage, UsedSpec, Uses

from tests.contract.redis_stores import open_link, open_store
from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact
from tests.servers.redis_server import RedisServer

SEALER = sealer()
SPEC = UsedSpec("wasmtime-49.0.0", "x86_64-unknown-linux-gnu", "baseline", (("opt_level", "none"),))
OWNER = b"0123456789abcdef"
NAMES = b"wasm:uses:"
LONG_AGO_S = 3 * 3600.0


def digest(number: int) -> str:
    return f"{number:064x}"


def document(ago_s: float = 0.0, **counts: float) -> dict[str, Any]:
    """Return uses by the last digit of their modules' digests, as they are kept."""
    return {
        "version": 1,
        "at": round(time.time() - ago_s, 3),
        "left": True,
        "specs": [[SPEC.engine_id, SPEC.target, SPEC.cpu, dict(SPEC.settings)]],
        "uses": [[digest(int(name[-1])), 0, count] for name, count in counts.items()],
    }


def record(said: dict[str, Any] | bytes, by: Sealer = SEALER) -> bytes:
    if isinstance(said, dict):
        said = json.dumps(said, separators=(",", ":")).encode()
    text = OWNER + said
    return by.stamp(b"wasmkiln uses\0" + NAMES + b"\0" + text) + text


def rounded(uses: Uses) -> dict[str, float]:
    """Return the counts by the last digit of the module's digest, whatever was asked for."""
    sums: dict[str, float] = {}
    for (module_sha256, _), count in uses.counts.items():
        sums[module_sha256[-1]] = sums.get(module_sha256[-1], 0.0) + count
    return {digit: round(count, 1) for digit, count in sums.items()}


def count(into: Usage, **counts: int) -> None:
    """Count as the request path does."""
    for name, number in counts.items():
        made = replace(artifact(), module_sha256=digest(int(name[-1])))
        into.tally[made.module_sha256, made.spec] += number


@pytest.fixture
async def daemon(server: redis.Redis, valkey: RedisServer) -> AsyncIterator[Callable[..., Usage]]:
    stores = []

    def begin(by: Sealer = SEALER, *, url: str = valkey.url, prefix: str = "wasm:") -> Usage:
        stores.append(open_store(open_link(url), prefix))
        return Usage(by, stores[-1])

    yield begin
    for each in stores:
        await each.link.close()


Daemon = Callable[..., Usage]


def taken(server: redis.Redis) -> int:
    return len([*server.scan_iter("wasm:uses:*")])


async def test_each_adds_to_the_sums_of_the_fleet(daemon: Daemon, server: redis.Redis) -> None:
    first, second, third = daemon(), daemon(), daemon()
    count(first, m1=1)
    await first.save()
    count(second, m1=2, m2=1)
    await second.save()
    count(first, m1=2)
    await first.save()
    assert taken(server) in (1, 2)
    for each in (first, second, third):
        assert rounded(await each.of_fleet()) == {"1": 5.0, "2": 1.0}
    count(third, m2=4)
    assert rounded(await third.of_fleet()) == {"1": 5.0, "2": 5.0}
    assert rounded(third.own) == {"2": 4.0}
    await third.save()
    assert rounded(await first.of_fleet()) == {"1": 5.0, "2": 5.0}


async def test_what_others_saved_stays_and_fades(daemon: Daemon, server: redis.Redis) -> None:
    for place in range(PLACES):
        server.set(f"wasm:uses:{place}", record(document(LONG_AGO_S, m2=4.0)))
    ours = daemon()
    count(ours, m1=1)
    await ours.save()
    await ours.save()
    assert taken(server) == PLACES
    assert rounded(await daemon().of_fleet()) == {"1": 1.0, "2": round(PLACES * 3.668, 1)}


async def test_without_a_shared_tier_each_counts_for_itself() -> None:
    one, other = Usage(SEALER, None), Usage(SEALER, None)
    for _ in range(2):
        count(one, m1=1, m2=1)
        await one.save()
    count(one, m2=1)
    for uses in (await one.of_fleet(), one.own):
        assert rounded(uses) == {"1": 2.0, "2": 3.0}
    assert rounded(await other.of_fleet()) == {}


async def test_what_lies_back_counts_less_and_then_nothing(
    daemon: Daemon, server: redis.Redis
) -> None:
    for place in range(PLACES):
        server.set(f"wasm:uses:{place}", record(document(HALF_LIFE_S, m1=8.0, m2=0.015)))
    ours = daemon()
    count(ours, m1=1)
    whole = 1.0 + PLACES * 4.0
    assert rounded(await ours.of_fleet()) == {"1": whole}
    await ours.save()
    assert rounded(await daemon().of_fleet()) == {"1": whole}


async def test_of_too_many_those_used_least_are_forgotten(
    daemon: Daemon, server: redis.Redis
) -> None:
    ours = daemon()
    said = document()
    said["uses"] = [[digest(number), 0, float(number)] for number in range(1, MAX_USES + 1)]
    for place in range(PLACES):
        server.set(f"wasm:uses:{place}", record(said))
    made = replace(artifact(), module_sha256=digest(0))
    ours.tally[made.module_sha256, made.spec] = 10**6
    await ours.save()
    whole = await daemon().of_fleet()
    assert len(whole.counts) == MAX_USES
    assert (digest(1), SPEC) not in whole.counts
    [(hottest, _)] = whole.most(1)
    assert hottest == (digest(0), UsedSpec.of(made.spec))
    assert [use for use, _ in whole.most(MAX_USES, made.spec.engine.id)] == [hottest]
    assert len(whole.most(MAX_USES, SPEC.engine_id)) == MAX_USES - 1


async def test_records_that_nobody_of_this_fleet_wrote_for_it_do_not_count(
    daemon: Daemon, server: redis.Redis
) -> None:
    theirs = daemon(prefix="wasm:ns:other:")
    count(theirs, m1=1)
    await theirs.save()
    [name] = server.scan_iter("wasm:ns:other:uses:*")
    spoilt = record(document(m1=1.0))
    values = [server.get(name) or b"", record(document(m1=1e6), sealer(THEIRS)), b"x" * 3_000_000]
    values += [b"x", spoilt[:-1], spoilt + b" ", spoilt[:120], spoilt[:96]]
    for place, value in enumerate(values):
        server.set(f"wasm:uses:{place}", value)
    server.lpush(f"wasm:uses:{len(values)}", "x")
    ours = daemon()
    assert rounded(await ours.of_fleet()) == {}
    count(ours, m2=1)
    await ours.save()
    assert rounded(await daemon().of_fleet()) == {"2": 1.0}
    assert rounded(await daemon(prefix="wasm:ns:other:").of_fleet()) == {"1": 1.0}
    # One whose record is lost writes it again.
    server.flushall()
    count(ours, m2=1)
    await ours.save()
    # A clock that is ahead makes no other count old.
    server.set("wasm:uses:0", record(document(-1e6, m1=3.0)))
    assert rounded(await daemon().of_fleet()) == {"1": 3.0, "2": 2.0}


async def test_other_texts_are_no_uses(daemon: Daemon, server: redis.Redis) -> None:
    ours = daemon()
    server.set("wasm:uses:0", record(document(m1=1.0)))
    assert rounded(await ours.of_fleet()) == {"1": 1.0}
    changes: list[dict[str, Any]] = [
        *({"version": 2}, {"at": -1}, {"at": "now"}, {"specs": None}, {"specs": [["e"]]}),
        *({"specs": [["e", "t", 7, {}]]}, {"specs": [["e", "t", "c", []]]}),
        *({"uses": [[digest(1), place, 1.0]]} for place in (7, -1)),
        *({"uses": [[digest(1), 0, uses]]} for uses in (-1.0, float("nan"), None)),
        {"uses": [[7, 0, 1.0]]},
    ]
    for change in changes:
        server.set("wasm:uses:0", record(document(m1=1.0) | change))
        assert rounded(await ours.of_fleet()) == {}, change
    for text in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"null", b"NaN"):
        server.set("wasm:uses:0", record(text))
        assert rounded(await ours.of_fleet()) == {}, text
    count(ours, m3=1)
    await ours.save()
    assert rounded(await daemon().of_fleet()) == {"3": 1.0}
