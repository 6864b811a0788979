"""One soak from beginning to end."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
_LONGER = 8
_SETTLE_S = 60.0
MIB = 2**20
# What daemons keep connected to Redis and the bucket, once many calls at once have needed them.
_CONNECTIONS = 32 + 8
# Beside what allocators keep for the next time, nothing may grow.
_MEMORY_SLACK_BYTES = 32 * MIB
_LEAST_SAMPLES = 5
# gRPC and the kernel close connections behind the caller's back.
_CLOSED_BY_S = 10.0


@dataclass(frozen=True)
class Plan:
    """How long the soak lasts, and what it uses."""

    seconds: float
    """How long the load lasts, without the time before and after it."""
    seed: int
    small: bool = False
    """Only modules that compile in no time."""


class Holdings(NamedTuple):
    """What an idle daemon holds."""

    processes: int
    """Its workers, and the processes that belong to them."""
    descriptors: int
    """The daemon's own descriptors, idle connections to stores included."""

    @classmethod
    def of(cls, member: Member) -> Holdings:
        """Return what a daemon holds now."""
        pid = member.life.daemon.pid
        return cls(len(workers_and_jobs(pid)), len(list(Path(f"/proc/{pid}/fd").iterdir())))


async def run(folder: Path, plan: Plan, tell: Tell = lambda _: None) -> tuple[list[Check], str]:
    """Return the checks of a soak, and its figures as Markdown. A failed call raises nothing."""
    tell("compiling each module with each engine itself")
    engines = await asyncio.to_thread(installed_engines)
    moulds = await asyncio.to_thread(make_moulds, engines, folder / "direct", small=plan.small)
    ledger = Ledger()
    tell("starting the fleet")
    async with running_fleet(folder) as fleet:
        stage, members = Stage(fleet, moulds, ledger), fleet.members
        before = [await _warmed_up(stage, member) for member in members]
        files = await asyncio.to_thread(_files, folder, fleet)
        chaos = Chaos(fleet, plan.seed, plan.seconds, stage.over)
        await _load(stage, chaos, plan, tell)
        tell("asking once more for everything")
        await _audit(stage)
        unsettled = [what for member in members if (what := await _settled(member))]
        leases = await asyncio.to_thread(_leases, fleet)
        for member in members:
            await member.hang_up()
        pairs = [
            (then, await _freed(each, then)) for each, then in zip(members, before, strict=True)
        ]
        # At a fourth of its life under load it has all that it needs.
        warm = [
            (memory_of(each.daemon.pid), each.held[len(each.held) // 4])
            for each in (member.life for member in members)
            if len(each.held) >= _LEAST_SAMPLES
        ]
        tell("ending the fleet")
        await asyncio.gather(*(member.stop() for member in members))
        left = await asyncio.to_thread(_left_behind, fleet)
        litter = sorted(await asyncio.to_thread(_files, folder, fleet) - files)
        complaints = [
            line for life in fleet.lives for line in life.daemon.log_lines if "Traceback" in line
        ]
        codes = [code for member in members for code in member.exit_codes]
        unmet = missing(ledger.calls, chaos.missing)
        checks = [
            *judge(ledger.calls, chaos.blows),
            Check("each daemon settles", "; ".join(unsettled) or "yes", not unsettled),
            Check(
                "processes and descriptors of each daemon: as before, with idle connections",
                ", ".join(
                    f"{now[0]}, {now[1]} (before {then[0]}, {then[1]})" for then, now in pairs
                ),
                all(n[0] == m[0] and n[1] <= m[1] + _CONNECTIONS for m, n in pairs),
            ),
            Check("processes left by daemons that ended: 0", str(left), not left),
            _nothing("temporary files, locks and uploads left", litter),
            _nothing("tracebacks in the logs", complaints),
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


def _nothing(what: str, found: Sequence[str]) -> Check:
    return Check(f"{what}: 0", "; ".join([str(len(found)), *found[:3]])[:3000], not found)


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
    held = Holdings.of(member)
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
        *(name for name, value in types_pb2.Origin.items() if value not in {0, *origins}),
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
            await member.life.regulars.evict(all=True, tier="memory", timeout_s=TIMEOUT_S)
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
    while busy := _busy(await member.life.regulars.stats(timeout_s=TIMEOUT_S)):
        if time.monotonic() > deadline:
            return f"{member.state.name}: {busy}"
        await asyncio.sleep(0.2)
    return ""


def _busy(stats: pb.StatsResponse) -> str:
    found = {
        "flights": stats.flights,
        "queued": stats.queue_depth,
        "busy workers": stats.busy_workers,
        "writes that wait": stats.pending_writes,
        "Redis is not up": int(not stats.redis_up),
        "the bucket is not up": int(not stats.object_store_up),
        "workers away": sum(WORKERS - each.workers for each in stats.workers),
    }
    return ", ".join(f"{name} {count}" for name, count in found.items() if count)


def _leases(fleet: Fleet) -> int:
    """Return how many leases are left once all have had the time to expire."""
    time.sleep(2 * LEASE_S)
    with fleet.ground.redis.server.admin() as admin:
        return sum(1 for _ in admin.scan_iter("wasm:3:lease:*", count=1000))


async def _freed(member: Member, before: Holdings) -> Holdings:
    """Return what a daemon holds once the connections of its former callers are closed."""
    deadline = time.monotonic() + _CLOSED_BY_S
    while (held := Holdings.of(member)).descriptors > before.descriptors:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    return held


def _left_behind(fleet: Fleet) -> int:
    return sum(len(workers_and_jobs(life.daemon.pid)) for life in fleet.lives)


def _files(folder: Path, fleet: Fleet) -> set[str]:
    """Return the files of daemons but for entries of the store, pins and sockets."""
    places = [folder / "tmp", fleet.ground.disk.seen, *(each.state for each in fleet.members)]
    found = {str(path) for place in places for path in place.rglob("*") if path.is_file()}
    return {path for path in found if not re.search(r"/store/[0-9a-f]{64}/|/pins/", path)}
