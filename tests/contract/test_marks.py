"""What was evicted or released does not come back, though somebody puts it back as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wasmkiln.attestation import Statement
from wasmkiln.trusted_keys import TrustedKeys
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX, RedisTier
from wasmkilnd.cache.value.format import MAX_VALUE_BYTES
from wasmkilnd.cache.value.marks import Mark, Marks, made_ms, write_mark
from wasmkilnd.model import Artifact, EvictScope, Strike
from wasmkilnd.signing.keys import Keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.redis_access import redis_access
from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, same
from tests.doubles.notes import Notes
from tests.servers.deployments import Deployment
from tests.servers.redis_server import RedisServer, binary_of, redis_server

ONE = artifact(1, 700_000)
STRIKE = Strike(ONE.key, "e-1", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)
SCOPES = [
    EvictScope(module_sha256=ONE.module_sha256),
    EvictScope(engine_id=ONE.spec.engine.id),
    EvictScope(),
]
NOW_S = 1_795_627_309.0


class Daemon:
    """What of a daemon takes part, with a clock of its own."""

    def __init__(
        self, url: str, clock_s: float, prefix: str = DEFAULT_PREFIX, **access: Any
    ) -> None:
        self.clock_s = clock_s
        self.notes = Notes()
        marks = Marks(lambda: self.clock_s)
        keys = Keys(OURS, TrustedKeys([OURS.public]))
        self.sealer = Sealer(keys, now=lambda: self.clock_s)
        self.tier = RedisTier(
            connect(url, timeout_s=5, **access),
            self.sealer,
            self.notes,
            prefix=prefix,
            timeout_s=5,
            marks=marks,
        )
        self.strikes = RedisStrikes(self.tier.link, self.tier.names, self.sealer, self.tier.marks)

    async def compile(self) -> Artifact:
        """Make ONE and store it."""
        made = self.sealer.seal(ONE)
        await self.tier.put(made)
        return made

    async def copied(self, *names: bytes) -> dict[bytes, bytes]:
        """What somebody keeps of what is there now."""
        values = await self.tier.link.beginnings(names, [MAX_VALUE_BYTES] * len(names))
        return dict(zip(names, values, strict=True))

    async def hear(self) -> None:
        """Let some time pass, in which a daemon hears of Evicts elsewhere."""
        await asyncio.sleep(0.15)
        await self.tier._look()  # As every few seconds, for servers of several parts.

    async def put_back(self, copies: dict[bytes, bytes]) -> None:
        for name, value in copies.items():
            await self.tier.link.set(name, value, 1000)


@contextlib.asynccontextmanager
async def fleet(url: str, *clocks_s: float, **options: Any) -> AsyncIterator[list[Daemon]]:
    daemons = [Daemon(url, clock_s, **options) for clock_s in clocks_s]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            await daemon.tier.close()


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


def names_of(daemon: Daemon, one: Artifact) -> list[bytes]:
    return [daemon.tier.names.artifact(one.key)]


@pytest.mark.parametrize("scope", SCOPES, ids=["module", "engine", "everything"])
async def test_an_evicted_artifact_that_is_put_back_is_served_by_nobody(
    deployment: Deployment | Path | None, scope: EvictScope
) -> None:
    if not isinstance(deployment, Deployment):
        return  # Memory, or the host store: nobody else can write there.
    prefix = f"wasm:{SCOPES.index(scope)}:"  # Marks stay.
    async with fleet(
        deployment.url, *[NOW_S] * 3, prefix=prefix, access=redis_access(deployment.access)
    ) as (
        one,
        two,
        late,
    ):
        made = await one.compile()
        assert same(await two.tier.get(ONE.key), made)
        head = one.tier.names.artifact(ONE.key)
        copies = await one.copied(head)
        await one.tier.evict(scope)
        for daemon in (one, two):
            await daemon.put_back(copies)
            await daemon.hear()
            assert await daemon.tier.get(ONE.key) is None
            assert daemon.notes.rejected == ["evicted"]
            assert await daemon.tier.held([ONE.key]) == frozenset()
        # What is made afterwards is good.
        late.clock_s += 1
        await late.hear()
        assert await late.tier.get(ONE.key) is None
        again = await late.compile()
        for daemon in (one, two, late):
            assert same(await daemon.tier.get(ONE.key), again)
        # And the next Evict is about that one too.
        copies = await late.copied(head)
        await late.tier.evict(scope)
        await late.put_back(copies)
        await two.hear()
        assert await two.tier.get(ONE.key) is None


async def test_artifacts_of_v0_1_0_have_the_second_in_which_they_were_finished(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "wasmkilnd.signing.sealer.Statement",
        lambda *told, made_ms, **named: Statement(*told, **named),
    )
    async with fleet(valkey.url, NOW_S + 0.4, NOW_S) as (one, two):
        old = await two.compile()
        assert made_ms(old) == NOW_S * 1000
        assert same(await one.tier.get(ONE.key), old)
        copies = await one.copied(one.tier.names.artifact(ONE.key))
        await one.tier.evict(EvictScope())
        await one.put_back(copies)
        assert await one.tier.get(ONE.key) is None
        two.clock_s += 1
        new = await two.compile()
        assert same(await one.tier.get(ONE.key), new)


@pytest.mark.parametrize("what", ["deleted", "older", "forged", "of another type", "huge"])
async def test_what_becomes_of_a_mark_in_redis_changes_nothing_for_who_knows_it(
    valkey: RedisServer, what: str
) -> None:
    async with fleet(valkey.url, NOW_S, NOW_S) as (one, two):
        await one.compile()
        name = one.tier.names.mark(ONE.module_sha256)
        copies = await one.copied(one.tier.names.artifact(ONE.key))
        await one.tier.evict(SCOPES[0])
        older = write_mark(name, Mark(evicted_ms=1), one.sealer.stamp)
        await one.tier.link.delete([name])
        match what:
            case "older":
                await one.put_back({name: older})
            case "forged":
                await one.put_back({name: sealer(THEIRS).stamp(b"x") + b'{"evicted_ms": 7}'})
            case "of another type":
                await one.tier.link._server.run([("LPUSH", name, "x")])
            case "huge":
                await one.put_back({name: older + b" " * 1_000_000})
        await one.put_back(copies)
        assert await one.tier.get(ONE.key) is None
        # It tells the server again, and so those that do not know it.
        await asyncio.sleep(0.2)
        await one.put_back(copies)
        assert await two.tier.get(ONE.key) is None


@pytest.mark.parametrize("mark", ["module", "all"])
async def test_who_has_no_key_of_the_fleet_evicts_nothing(valkey: RedisServer, mark: str) -> None:
    async with fleet(valkey.url, NOW_S) as [one]:
        made = await one.compile()
        names = one.tier.names
        for name in (names.mark(ONE.module_sha256), names.mark("")):
            theirs = write_mark(name, Mark(evicted_ms=1 << 50), sealer(THEIRS).stamp)
            elsewhere = write_mark(name + b"x", Mark(evicted_ms=1 << 50), sealer(OURS).stamp)
            for value in (theirs, elsewhere, b"", b"x", b"x" * 100_000):
                await one.put_back({name: value})
                assert same(await one.tier.get(ONE.key), made)
            await one.tier.link.delete([name])
            await one.tier.link._server.run([("LPUSH", name, "x")])
            assert same(await one.tier.get(ONE.key), made)
        assert one.notes.rejected == []


async def test_marks_are_read_in_the_round_trip_of_the_value(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(valkey.url, NOW_S, NOW_S) as (one, two):
        await one.compile()
        runs: list[int] = []
        server = two.tier.link._server

        async def run(commands: Sequence[Command]) -> list[Any]:
            runs.append(len(commands))
            return await genuine(commands)

        genuine = server.run
        monkeypatch.setattr(server, "run", run)
        assert await two.tier.get(ONE.key)
        assert runs == [3, 1]  # The head with the marks, and the second piece.
        assert await two.strikes.get(ONE.key, WaitBudget()) is None
        assert len(runs) == 3


@pytest.mark.parametrize("module", [ONE.module_sha256, ""])
async def test_a_released_strike_that_is_put_back_refuses_nobody(
    valkey: RedisServer, module: str
) -> None:
    async with fleet(valkey.url, NOW_S, NOW_S + 40, NOW_S) as (one, ahead, two):
        await ahead.strikes.put(STRIKE, 1000, WaitBudget())
        assert await one.strikes.get(ONE.key, WaitBudget()) == STRIKE
        copies = await one.copied(one.tier.names.strike(ONE.key))
        assert await one.strikes.remove(module) == [ONE.key]
        for daemon in (one, two, ahead):
            await daemon.hear()
            await daemon.put_back(copies)
            assert await daemon.strikes.get(ONE.key, WaitBudget()) is None
            assert await daemon.strikes.all() == []
        # One that comes after the release counts, whatever the clock says.
        await two.strikes.put(STRIKE, 1000, WaitBudget())
        for daemon in (one, two, ahead):
            assert await daemon.strikes.get(ONE.key, WaitBudget()) == STRIKE


async def test_a_strike_that_has_ended_does_not_come_back(valkey: RedisServer) -> None:
    async with fleet(valkey.url, NOW_S) as [one]:
        await one.strikes.put(STRIKE, 1000, WaitBudget())
        copies = await one.copied(one.tier.names.strike(ONE.key))
        one.clock_s += 1000 + 30  # Clocks may differ.
        assert await one.strikes.get(ONE.key, WaitBudget()) == STRIKE
        one.clock_s += 31
        await one.put_back(copies)
        assert await one.strikes.get(ONE.key, WaitBudget()) is None


async def test_strikes_are_read_by_v0_1_0_and_its_own_are_read(valkey: RedisServer) -> None:
    async with fleet(valkey.url, NOW_S) as [one]:
        await one.strikes.put(STRIKE, 1000, WaitBudget())
        name = one.tier.names.strike(ONE.key)
        record = (await one.copied(name))[name]
        said = as_v0_1_0_reads(record[96:])
        assert said is not None
        assert (said["ttl_s"], said["quarantine_s"], said["count"]) == (1000, 600.0, 3)
        text = json.dumps(said, sort_keys=True).encode()
        await one.put_back({name: one.sealer.stamp(b"wasmkiln strike\0" + text) + text})
        assert await one.strikes.get(ONE.key, WaitBudget()) == STRIKE
        # It does not say when it was written: so it may be one from before.
        await one.strikes.remove(ONE.module_sha256)
        await one.put_back({name: one.sealer.stamp(b"wasmkiln strike\0" + text) + text})
        assert await one.strikes.get(ONE.key, WaitBudget()) is None


def as_v0_1_0_reads(text: bytes) -> dict[str, Any] | None:
    """As wasmkilnd 0.1.0 does: exactly these fields, of exactly these types."""
    fields = {
        "count": int,
        "engine": str,
        "fingerprint": str,
        "message": str,
        "module": str,
        "quarantine_s": float,
        "reason": str,
        "ttl_s": int,
    }
    said = json.loads(text)
    return said if {name: type(value) for name, value in said.items()} == fields else None


async def test_what_is_told_late_is_not_told_when_it_was_released_or_is_known(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey.url, NOW_S, NOW_S) as (one, two):
        await two.strikes.remove("")
        two.clock_s = one.clock_s = NOW_S + 10
        await one.strikes.put(STRIKE, 1000, None, age_s=11)
        assert await two.strikes.get(ONE.key, WaitBudget()) is None
        await one.strikes.put(STRIKE, 1000, None, age_s=9)
        assert await two.strikes.get(ONE.key, WaitBudget()) == STRIKE
        await one.strikes.put(replace(STRIKE, count=2), 1000, None, age_s=5)
        assert await two.strikes.get(ONE.key, WaitBudget()) == STRIKE


def test_memory_is_bounded() -> None:
    marks = Marks(lambda: NOW_S)
    for number in range(10_500):
        marks.evict(EvictScope(module_sha256=f"{number:064x}"))
        marks.evict(EvictScope(engine_id=f"engine-{number}"))
    assert len(marks._modules) == 10_000
    assert len(marks.of("").engines) == 100
    assert marks.evicted_ms("", "engine-10499")
    before = marks.of("")
    marks.evict(EvictScope(engine_id="x" * 101))
    assert marks.of("") == before
