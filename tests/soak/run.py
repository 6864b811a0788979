"""One soak from beginning to end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.e2e.processes import memory_of, workers_and_jobs
from tests.e2e.programs import installed_engines
from tests.soak.actors import Actor, actors, slow_reader
from tests.soak.chaos import Blow, Chaos
from tests.soak.fleet import LEASE_S, WORKERS, Fleet, Life, Member, running_fleet
from tests.soak.ledger import Call, Ledger
from tests.soak.modules import ENGINES, make_moulds
from tests.soak.stage import TIMEOUT_S, Stage

# Of the load, in tenths: by then a daemon has all that it needs.
_WARM = 3
# On a busy machine it takes more time until all that is planned has happened.
_LONGER = 4
_SETTLE_S = 60.0
# gRPC and the kernel close connections behind the caller's back.
_CLOSED_BY_S = 10.0

Tell = Callable[[str], None]


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


@dataclass(frozen=True)
class Figures:
    """All measurements of a soak."""

    plan: Plan
    calls: list[Call]
    blows: list[Blow]
    lives: list[Life]
    before: list[Holdings]
    """What each daemon held before the load, without callers."""
    after: list[Holdings]
    """What its last process held after the load, without callers."""
    unsettled: list[str]
    """Work that went on without callers."""
    leases: int
    """Leases left in Redis."""
    exit_codes: list[int]
    """The exit codes of all processes that were ended with SIGTERM."""
    left_behind: int
    """Processes whose daemon is gone."""
    last: list[Life]
    """The last process of each daemon."""
    missing: list[str]
    """Planned faults and outcomes that did not happen."""


async def run(folder: Path, plan: Plan, tell: Tell = lambda _: None) -> Figures:
    """Run the soak; return its measurements. A failed call raises nothing."""
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
        unsettled = [await _settled(member) for member in fleet.members]
        leases = await asyncio.to_thread(_leases, fleet)
        for member in fleet.members:
            await member.hang_up()
        after = [
            await _freed(member, held) for member, held in zip(fleet.members, before, strict=True)
        ]
        tell("ending the fleet")
        await asyncio.gather(*(member.stop() for member in fleet.members))
        return Figures(
            plan,
            ledger.calls,
            chaos.blows,
            fleet.lives,
            before,
            after,
            [what for what in unsettled if what],
            leases,
            [code for member in fleet.members for code in member.exit_codes],
            await asyncio.to_thread(_left_behind, fleet),
            [member.life for member in fleet.members],
            missing(ledger.calls, chaos.missing),
        )


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
            if tenth == _WARM:
                for life in (member.life for member in stage.fleet.members):
                    if life.lives:
                        life.warm_bytes = memory_of(life.daemon.pid)
            if tenth >= 9 and not missing(calls, chaos.missing):
                break
        stage.over.set()


def missing(calls: Sequence[Call], blows: Sequence[str]) -> list[str]:
    """Return what has not happened to any call that counts, and which ``blows`` were not dealt."""
    good = [call for call in calls if call.unaffected and call.as_expected]
    origins = {call.origin for call in good}
    return [
        *blows,
        *(name for name, value in types_pb2.Origin.items() if value and value not in origins),
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


async def _settled(member: Member) -> str:
    """Wait until a daemon has nothing to do; return what it still does after a while."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        stats = await member.life.regulars.stats(timeout_s=TIMEOUT_S)
        busy = _busy(stats)
        if not busy:
            return ""
        if time.monotonic() > deadline:
            return f"daemon {member.number}: {busy}"
        await asyncio.sleep(0.2)


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
    deadline = time.monotonic() + _CLOSED_BY_S
    while True:
        held = await asyncio.to_thread(holdings, member.life.daemon.pid)
        if held.descriptors <= before.descriptors or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.2)


def _left_behind(fleet: Fleet) -> int:
    return sum(len(workers_and_jobs(life.daemon.pid)) for life in fleet.lives)
