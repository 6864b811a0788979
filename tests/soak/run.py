"""One soak from beginning to end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.e2e.processes import memory_of, workers_and_jobs
from tests.e2e.programs import installed_engines
from tests.promises import Check, Tell
from tests.soak.actors import Actor, actors, slow_reader
from tests.soak.chaos import Chaos
from tests.soak.fleet import LEASE_S, WORKERS, Fleet, Member, running_fleet
from tests.soak.ledger import Call, Ledger
from tests.soak.modules import ENGINES, make_moulds
from tests.soak.stage import TIMEOUT_S, Stage
from tests.soak.verdict import judge, markdown

# On a busy machine it takes more time until all that is planned has happened.
_LONGER = 4
_SETTLE_S = 60.0
MIB = 2**20
# What daemons keep connected to Redis, once many calls at once have needed it.
_CONNECTIONS = 32
# Beside what allocators keep for the next time, nothing may grow.
_MEMORY_SLACK_BYTES = 32 * MIB
_LEAST_SAMPLES = 5
# gRPC and the kernel close connections behind the caller's back.
_CLOSED_BY_S = 10.0
# The fleet has no object store: tests/faults has one that fails.
_NEVER = (types_pb2.ORIGIN_UNSPECIFIED, types_pb2.ORIGIN_OBJECT_STORE)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """How long the soak lasts, and what it uses."""

    seconds: float
    """How long the load lasts, without the time before and after it."""
    seed: int
    small: bool = False
    """Only modules that compile in no time."""


@dataclass(frozen=True)
class Holdings:
    """What an idle daemon holds."""

    processes: int
    """Its workers, and the processes that belong to them."""
    descriptors: int
    """The daemon's own descriptors, idle connections to Redis included."""
    memory_bytes: int
    """Its own resident memory."""


def holdings(pid: int) -> Holdings:
    """Return what a daemon holds now."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Holdings(len(workers_and_jobs(pid)), descriptors, memory_of(pid))


async def run(folder: Path, plan: Plan, tell: Tell = lambda _: None) -> tuple[list[Check], str]:
    """Return the checks of a soak, and its figures as Markdown. A failed call raises nothing."""
    tell("compiling each module with each engine itself")
    engines = await asyncio.to_thread(installed_engines)
    moulds = await asyncio.to_thread(make_moulds, engines, folder / "direct", small=plan.small)
    ledger = Ledger()
    tell("starting the fleet")
    async with running_fleet(folder) as fleet:
        stage = Stage(fleet, moulds, ledger)
        before = [await _warmed_up(stage, member) for member in fleet.members]
        chaos = Chaos(fleet, plan.seed, plan.seconds, stage.over)
        await _load(stage, chaos, plan, tell)
        _check_alive(fleet)
        tell("asking once more for everything")
        await _audit(stage)
        unsettled = [what for member in fleet.members if (what := await _settled(member))]
        leases = await asyncio.to_thread(_leases, fleet)
        for member in fleet.members:
            await member.hang_up()
        after = [
            await _freed(member, held) for member, held in zip(fleet.members, before, strict=True)
        ]
        tell("ending the fleet")
        await asyncio.gather(*(member.stop() for member in fleet.members))
        left = await asyncio.to_thread(_left_behind, fleet)
        codes = [code for member in fleet.members for code in member.exit_codes]
        unmet = missing(ledger.calls, chaos.missing)
        pairs = list(zip(before, after, strict=True))
        # At a fourth of its life under load it has all that it needs.
        warm = [
            (now.memory_bytes, held[len(held) // 4])
            for now, held in zip(after, (member.life.held for member in fleet.members), strict=True)
            if len(held) >= _LEAST_SAMPLES
        ]
        checks = [
            *judge(ledger.calls, chaos.blows),
            Check("each daemon settles", "; ".join(unsettled) or "yes", not unsettled),
            Check(
                "processes of each daemon: as before",
                ", ".join(f"{now.processes} (before {then.processes})" for then, now in pairs),
                all(now.processes == then.processes for then, now in pairs),
            ),
            Check(
                "descriptors of each daemon: as before, but for idle connections to Redis",
                ", ".join(f"{now.descriptors} (before {then.descriptors})" for then, now in pairs),
                all(now.descriptors <= then.descriptors + _CONNECTIONS for then, now in pairs),
            ),
            Check("processes left by daemons that ended: 0", str(left), not left),
            Check("leases left in Redis: 0", str(leases), not leases),
            Check("exit codes after SIGTERM: 0", ", ".join(map(str, codes)), not any(codes)),
            Check(
                "memory of each daemon that lived long: bounded once it is warm",
                "; ".join(f"{now / MIB:.0f} MiB (warm {then / MIB:.0f})" for now, then in warm),
                bool(warm) and all(now <= then * 1.25 + _MEMORY_SLACK_BYTES for now, then in warm),
            ),
            Check("all that was planned happened", ", ".join(unmet) or "yes", not unmet),
        ]
        return checks, markdown(checks, ledger.calls, chaos.blows)


def _check_alive(fleet: Fleet) -> None:
    for daemon in (member.life.daemon for member in fleet.members):
        code = daemon.process.poll()
        assert code is None, f"a daemon ended by itself, with {code}: {daemon.log[-4000:]}"


async def _warmed_up(stage: Stage, member: Member) -> Holdings:
    """Have a daemon do a little of everything; return what it holds then without callers."""
    dice = random.Random(0)
    life = member.life
    for engine in ENGINES:
        known = next(known for known in stage.hot if engine in known.artifacts)
        await stage.ask("warm-up", dice, known, life=life, engine=engine)
    await slow_reader(stage, dice)
    with stage.ledger.call("warm-up", life, TIMEOUT_S, frozenset({"NOT_WASM"})):
        await life.strangers.compile(b"(module)", timeout_s=TIMEOUT_S)
    await member.hang_up()
    await asyncio.sleep(1)
    held = await asyncio.to_thread(holdings, life.daemon.pid)
    await member.meet_again()
    return held


async def _load(stage: Stage, chaos: Chaos, plan: Plan, tell: Tell) -> None:
    """Run actors and chaos for as long as planned, and until the last call has ended."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(chaos.rage())
        for actor in actors():
            for number in range(actor.tasks):
                dice = random.Random(f"{plan.seed} {actor.name} {number}")
                tasks.create_task(_act(stage, actor, dice))
        for tenth in range(10 * _LONGER):
            calls = stage.ledger.calls
            tell(f"{len(calls):,} calls, {len(chaos.blows)} blows ({tenth * 10} %)")
            await asyncio.sleep(plan.seconds / 10)
            living = [member.life for member in stage.fleet.members if member.life.lives]
            for life in living:
                life.held.append(memory_of(life.daemon.pid))
            lived_long = any(len(life.held) >= _LEAST_SAMPLES for life in living)
            if tenth >= 9 and lived_long and not missing(calls, chaos.missing):
                break
        stage.over.set()


def missing(calls: Sequence[Call], blows: Sequence[str]) -> list[str]:
    """Return what has not happened to any call that counts, and which ``blows`` were not dealt."""
    good = [call for call in calls if call.unaffected and call.as_expected]
    origins = {call.origin for call in good}
    return [
        *blows,
        *(name for name, value in types_pb2.Origin.items() if value not in {*origins, *_NEVER}),
        *sorted({call.group for call in calls} - {call.group for call in good}),
    ]


async def _act(stage: Stage, actor: Actor, dice: random.Random) -> None:
    while not stage.over.is_set():
        await actor.act(stage, dice)
        await asyncio.sleep(actor.pause_s * dice.uniform(0.5, 1.5))


async def _audit(stage: Stage) -> None:
    """Ask every daemon for every regular artifact, after an eviction from its memory."""
    dice = random.Random(0)
    for member in stage.fleet.members:
        with stage.ledger.call("operator", member.life, TIMEOUT_S):
            await member.life.regulars.evict(everything=True, tier="memory", timeout_s=TIMEOUT_S)
        for known in stage.regulars:
            await asyncio.gather(
                *(
                    stage.ask("audit", dice, known, life=member.life, engine=engine)
                    for engine in known.artifacts
                )
            )


async def _until(
    look: Callable[[], Awaitable[Found]], good: Callable[[Found], bool], within_s: float
) -> Found:
    """Look again and again until it is good, or the time is over; return what was seen last."""
    deadline = time.monotonic() + within_s
    while True:
        found = await look()
        if good(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


async def _settled(member: Member) -> str:
    """Wait until a daemon has nothing to do; return what it still does after a while."""

    async def look() -> str:
        return _busy(await member.life.regulars.stats(timeout_s=TIMEOUT_S))

    busy = await _until(look, lambda busy: not busy, _SETTLE_S)
    return f"daemon {member.number}: {busy}" if busy else ""


def _busy(stats: pb.StatsResponse) -> str:
    found = {
        "flights": stats.flights,
        "queued": stats.queue_depth,
        "busy workers": stats.busy_workers,
        "writes that wait": stats.pending_writes,
        "Redis is not up": int(not stats.redis_up),
        "workers away": sum(WORKERS - each.workers for each in stats.workers),
    }
    return ", ".join(f"{name} {count}" for name, count in found.items() if count)


def _leases(fleet: Fleet) -> int:
    """Return how many leases are left once all have had the time to expire."""
    time.sleep(2 * LEASE_S)
    with fleet.server.admin() as admin:
        return sum(1 for _ in admin.scan_iter("wasm:3:lease:*", count=1000))


async def _freed(member: Member, before: Holdings) -> Holdings:
    """Return what a daemon holds once the connections of its former callers are closed."""

    async def look() -> Holdings:
        return await asyncio.to_thread(holdings, member.life.daemon.pid)

    return await _until(look, lambda held: held.descriptors <= before.descriptors, _CLOSED_BY_S)


def _left_behind(fleet: Fleet) -> int:
    return sum(len(workers_and_jobs(life.daemon.pid)) for life in fleet.lives)
