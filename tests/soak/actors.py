"""The callers: each kind does one thing again and again, at random moments in random ways."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from wasmkiln import Artifact
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.soak import hostile
from tests.soak.hostile import Hostile
from tests.soak.ledger import CANCELLED, OK
from tests.soak.modules import CPU, Known
from tests.soak.stage import TIMEOUT_S, Stage, difference

_IN_A_HURRY = frozenset({OK, "DEADLINE_EXCEEDED", "COMPILE_QUEUE_FULL"})
_CANCELLED_OR_DONE = frozenset({OK, CANCELLED})
_CROWD = 6
# Of the costly modules, how many are sent a second time: soon enough to be in quarantine.
_REPEATED = 0.4

Act = Callable[[Stage, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Actor:
    """A kind of caller."""

    name: str
    act: Act
    tasks: int
    """How many callers of this kind there are."""
    pause_s: float
    """How long they rest between two acts, on average."""


def asking(kind: str, among: Callable[[Stage], list[Known]]) -> Act:
    """Return what asks for one of some modules."""

    async def ask(stage: Stage, dice: random.Random) -> None:
        await stage.ask(kind, dice, dice.choice(among(stage)))

    return ask


async def evicted(stage: Stage, dice: random.Random) -> None:
    """Evict a module from memory, or from all tiers, and ask for it."""
    life = stage.fleet.any_life(dice)
    known = dice.choice(stage.regulars)
    tier: Literal["memory"] | None = "memory" if dice.random() < 0.8 else None
    with stage.ledger.call("operator", life, TIMEOUT_S):
        await life.regulars.evict(module_sha256=known.sha256, tier=tier, timeout_s=TIMEOUT_S)
    await stage.ask("after an eviction", dice, known, life=life)


async def fresh(stage: Stage, dice: random.Random) -> None:
    """Ask for a new module, or have a known one compiled again."""
    known = stage.fresh(dice)
    await stage.ask("miss", dice, known)
    if len(known.wasm) < 50_000 and dice.random() < 0.3:
        await stage.ask("made anew", dice, known, skip_cache_lookup=True)


async def crowd(stage: Stage, dice: random.Random) -> None:
    """Ask for one new module by many calls at once."""
    known = stage.fresh(dice)
    engine = dice.choice(list(known.artifacts))
    calls = (stage.ask("crowd", dice, known, engine=engine) for _ in range(_CROWD))
    await asyncio.gather(*calls)


async def fickle(stage: Stage, dice: random.Random) -> None:
    """Cancel a call at a random moment."""
    known = stage.fresh(dice) if dice.random() < 0.4 else dice.choice(stage.regulars)
    life = stage.fleet.any_life(dice)
    engine = dice.choice(list(known.artifacts))
    with stage.ledger.call("cancelled", life, TIMEOUT_S, _CANCELLED_OR_DONE) as call:
        asked = asyncio.create_task(
            life.regulars.compile(known.wasm, engine=engine, cpu=CPU, timeout_s=TIMEOUT_S)
        )
        # Half of them early: while it is sent, looked up, or waits for a worker.
        done, _ = await asyncio.wait([asked], timeout=dice.choice((0.1, 1.0)) * dice.random())
        if not done:
            call.hurry()
            asked.cancel()
            await asyncio.wait([asked])
        if asked.cancelled():
            call.outcome = CANCELLED
            return
        answer = asked.result()
    if call.outcome == OK:
        call.wrong = difference(answer, known, engine)


async def impatient(stage: Stage, dice: random.Random) -> None:
    """Set a deadline that may be too short."""
    known = stage.fresh(dice)
    timeout_s = dice.choice((0.02, 0.2, 2.0)) * dice.uniform(0.2, 1)
    await stage.ask("impatient", dice, known, timeout_s=timeout_s, expected=_IN_A_HURRY)


async def slow_reader(stage: Stage, dice: random.Random) -> None:
    """Read an answer with long pauses, and perhaps not to its end."""
    known = max(dice.sample(stage.regulars, 3), key=lambda known: len(known.wasm))
    engine = dice.choice(list(known.artifacts))
    life = stage.fleet.any_life(dice)
    leaves_after = dice.randrange(1, 8) if dice.random() < 0.3 else None
    header, chunks = types_pb2.ArtifactHeader(), []
    with stage.ledger.call("slow reader", life, TIMEOUT_S, _CANCELLED_OR_DONE) as call:
        request = pb.CompileRequest(module=known.wasm, engine=engine, cpu=CPU)
        stream = life.slow.Compile(request, timeout=TIMEOUT_S)
        try:
            async for part in stream:
                if part.HasField("header"):
                    header = part.header
                else:
                    chunks.append(part.chunk)
                if leaves_after is not None and len(chunks) >= leaves_after:
                    call.outcome = CANCELLED
                    break
                await asyncio.sleep(dice.uniform(0, 0.6))
        finally:
            stream.cancel()
        call.origin = header.origin
        if call.outcome != CANCELLED:
            answer = Artifact(b"".join(chunks), header)
            answer.verify(stage.fleet.trusted)
            call.wrong = difference(answer, known, engine)


async def operator(stage: Stage, dice: random.Random) -> None:
    """Ask a daemon something else, perhaps with a mistake in it."""
    life = stage.fleet.any_life(dice)
    client, known = life.strangers, dice.choice(stage.hot)
    nothing = f"{dice.getrandbits(256):064x}"
    regulars = [each.sha256 for each in stage.regulars]
    questions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        (OK, client.stats),
        (OK, client.capabilities),
        (OK, client.quarantined),
        (OK, client.health),
        (OK, lambda: client.find_missing(regulars)),
        (OK, lambda: client.load(known.wasm)),
        ("MODULE_NOT_LOADED", lambda: client.compile(nothing)),
        ("DIGEST_MISMATCH", lambda: client.load(known.wasm, expected_sha256=nothing)),
        ("ENGINE_UNKNOWN", lambda: client.compile(known.wasm, engine="wasmtime-1.2.3")),
        ("TARGET_UNSUPPORTED", lambda: client.compile(known.wasm, target="pdp11-dec-unix")),
        ("SETTING_UNKNOWN", lambda: client.compile(known.wasm, settings={"fast": "true"})),
    ]
    outcome, question = dice.choice(questions)
    with stage.ledger.call("operator", life, TIMEOUT_S, frozenset({outcome})):
        await question()


def sending(choose: Callable[[Stage], list[Hostile]]) -> Act:
    """Return what sends the hostile modules that ``choose`` answers, some of them twice."""
    sent: list[tuple[Hostile, str, bytes]] = []

    async def send(stage: Stage, dice: random.Random) -> None:
        if sent and dice.random() < _REPEATED:
            what, engine, module = dice.choice(sent[-3:])
        else:
            what = dice.choice(choose(stage))
            engine, module = dice.choice(what.engines), what.make(dice)
            sent[:] = [*sent[-3:], (what, engine, module)]
        life = stage.fleet.any_life(dice)
        with stage.ledger.call(f"hostile: {what.name}", life, TIMEOUT_S, what.expected):
            await life.strangers.compile(module, engine=engine, cpu=CPU, timeout_s=TIMEOUT_S)

    return send


def actors() -> list[Actor]:
    """Return all of them."""
    return [
        Actor("hit", asking("hit", lambda stage: stage.hot), 4, 0.1),
        # They are more than memory holds.
        Actor("regular", asking("regular", lambda stage: stage.regulars), 2, 0.25),
        Actor("evicted", evicted, 1, 0.6),
        Actor("fresh", fresh, 2, 1.0),
        Actor("crowd", crowd, 1, 4.0),
        Actor("fickle", fickle, 2, 0.8),
        Actor("impatient", impatient, 1, 1.2),
        Actor("slow reader", slow_reader, 3, 0.3),
        Actor("operator", operator, 2, 0.5),
        Actor("hostile", sending(lambda stage: hostile.cheap(stage.moulds)), 2, 0.6),
        Actor("costly", sending(lambda _: hostile.costly()), 1, 8.0),
    ]
