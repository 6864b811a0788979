"""The callers: each kind does one thing again and again, at random moments in random ways."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import wasmtime
from wasmkiln import Artifact, engine_of
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.soak import hostile
from tests.soak.hostile import Hostile
from tests.soak.ledger import CANCELLED, OK
from tests.soak.modules import CPU, WASMTIME, Known
from tests.soak.stage import TIMEOUT_S, Stage, difference

_IN_A_HURRY = frozenset({OK, "DEADLINE_EXCEEDED", "COMPILE_QUEUE_FULL"})
_CANCELLED_OR_DONE = frozenset({OK, CANCELLED})
_UNLESS_GONE = frozenset({OK, "MODULE_NOT_LOADED", "ARTIFACT_NOT_STORED"})
_UNLESS_PINNED = frozenset({OK, "MODULE_PINNED"})
_TIERS: Sequence[Any] = ("memory", "host_store", "redis", "object_store")
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
    """Evict from some tiers, the upper ones first, and ask for a module that was there."""
    life, known, _ = stage.some(dice)
    scope: dict[str, Any] = {"module_sha256": known.sha256}
    if dice.random() < 0.1:
        scope = dice.choice([{"everything": True}, {"engine": WASMTIME}])
    for tier in _TIERS[: dice.choice((1, 1, 1, 2, 3, 4))]:
        with stage.ledger.call("evict", life, TIMEOUT_S, _UNLESS_PINNED):
            await life.regulars.evict(tier=tier, timeout_s=TIMEOUT_S, **scope)
    await stage.ask("after an eviction", dice, known, life=life)


async def keeper(stage: Stage, dice: random.Random) -> None:
    """Pin a module, or unpin it; then ask what is pinned, and what is missing."""
    life, known, _ = stage.some(dice)
    pins, nothing = dice.random() < 0.4, f"{dice.getrandbits(256):064x}"
    change = life.regulars.pin if pins else life.regulars.unpin
    with stage.ledger.call("pins", life, TIMEOUT_S, _UNLESS_GONE | {"PINS_FULL"}) as call:
        await change(known.sha256, timeout_s=TIMEOUT_S)
        listed = await life.regulars.pins(timeout_s=TIMEOUT_S)
        if pins != any(pin.module_sha256 == known.sha256 for pin in listed.pins):
            call.wrong = f"{known.name} was {'pinned' if pins else 'unpinned'}, and is not"
    with stage.ledger.call("find missing", life, TIMEOUT_S) as call:
        asked = [known.sha256, nothing]
        missing = await life.regulars.find_missing(asked, timeout_s=TIMEOUT_S)
        if nothing not in [key.module_sha256 for key in missing]:
            call.wrong = "a module that nobody has is not missing"


async def by_digest(stage: Stage, dice: random.Random) -> None:
    """Load a new module, whole or in pieces, and ask for it by its digest alone."""
    life, known = stage.fleet.any_life(dice), stage.fresh(dice)

    async def pieces() -> AsyncIterator[pb.UploadRequest]:
        for offset in range(0, len(known.wasm), 2**16):
            first: dict[str, Any] = (
                {} if offset else {"sha256": known.sha256, "size_bytes": len(known.wasm)}
            )
            data = known.wasm[offset : offset + 2**16]
            yield pb.UploadRequest(offset=offset, data=data, **first)

    with stage.ledger.call(dice.choice(("load", "upload")), life, TIMEOUT_S) as call:
        if call.kind == "load":
            loaded = await life.regulars.load(known.wasm, engine=WASMTIME, timeout_s=TIMEOUT_S)
        else:
            loaded = (await life.slow.Upload(pieces(), timeout=TIMEOUT_S)).loaded
        if loaded.sha256 != known.sha256:
            call.wrong = f"{loaded.sha256} was loaded instead of {known.name}"
    await stage.ask("by digest", dice, known, life=life, by_digest=True, expected=_UNLESS_GONE)


async def runner(stage: Stage, dice: random.Random) -> None:
    """Ask for tiny code, fast or optimised, and run it: it returns its number."""
    life, number = stage.fleet.any_life(dice), dice.randrange(500)
    fast = dice.random() < 0.7
    with stage.ledger.call("runner", life, TIMEOUT_S) as call:
        answer = await life.regulars.compile(
            wasm.constant(number), engine=WASMTIME, accept_fast=fast, timeout_s=TIMEOUT_S
        )
        call.origin = answer.header.origin
    if call.outcome == OK:
        module = answer.load()
        store = wasmtime.Store(engine_of(module))
        returned: Any = wasmtime.Instance(store, module, []).exports(store)["c"]
        if (returned := returned(store)) != number:
            call.wrong = f"{answer!r} returned {returned} instead of {number}"


async def download(stage: Stage, dice: random.Random) -> None:
    """Get an artifact, or the rest of it, over HTTP."""
    life, known, engine = stage.some(dice)
    whole = known.artifacts[engine]
    begin = dice.choice((0, dice.randrange(len(whole))))
    path = f"v1/artifacts/{known.sha256}/{stage.fingerprints[engine]}"
    with stage.ledger.call("download", life, TIMEOUT_S, _UNLESS_GONE) as call:
        async with aiohttp.request(
            "GET",
            f"http://{life.daemon.http}/{path}",
            headers={"Range": f"bytes={begin}-"} if begin else {},
            timeout=aiohttp.ClientTimeout(TIMEOUT_S),
        ) as answer:
            body = await answer.read()
        if answer.status >= 300:
            call.outcome = json.loads(body)["reason"]
        elif body != whole[begin:]:
            call.wrong = f"{len(body)} bytes from {begin} are not those of {known.name}"


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
    questions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        (OK, client.stats),
        (OK, client.capabilities),
        (OK, client.quarantined),
        (OK, client.health),
        (OK, lambda: client.load(known.wasm)),
        ("MODULE_NOT_LOADED", lambda: client.compile(nothing)),
        ("DIGEST_MISMATCH", lambda: client.load(known.wasm, expected_sha256=nothing)),
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
        Actor("keeper", keeper, 1, 0.5),
        Actor("by digest", by_digest, 1, 1.0),
        Actor("runner", runner, 1, 0.3),
        Actor("download", download, 2, 0.3),
        Actor("fresh", fresh, 2, 1.0),
        Actor("crowd", crowd, 1, 4.0),
        Actor("fickle", fickle, 2, 0.8),
        Actor("impatient", impatient, 1, 1.2),
        Actor("slow reader", slow_reader, 3, 0.3),
        Actor("operator", operator, 2, 0.5),
        Actor("hostile", sending(lambda stage: hostile.cheap(stage.moulds)), 2, 0.6),
        Actor("costly", sending(lambda _: hostile.costly()), 1, 8.0),
    ]
