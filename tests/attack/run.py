"""One attack from beginning to end: each way for a while, one after the other."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmkiln import AsyncClient, WasmkilnError
from wasmkiln.attestation import TrustedKeys

from tests.attack.catalogue import WAYS
from tests.attack.honest import ENGINE, HIT, TIMEOUT_S, Honest
from tests.attack.sampler import Sample, Sampler
from tests.attack.target import Target
from tests.e2e import wasm
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.programs import ROOT, inside, installed_engines
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stall_watch import Hold
from tests.faults.site import PASSWORD, Server
from tests.soak.ledger import Call
from tests.soak.verdict import percentile

QUIET = "quiet"
"""The name of the phase in which nobody attacks."""
# Longer than what the daemon holds back for callers that may come again.
_SETTLE_S = 60.0
RECOVERY_S = 5.0
"""How soon after an attack hits are as fast again as before."""
_RECOVERED_S = 0.5
_POLL_S = 0.05
_SETTLED_MEMORY_BYTES = 48 * 2**20
_ATTACKER_ENDS_S = 90.0
SETTINGS = {
    "WASMKILN_WORKERS": "2",
    "WASMKILN_COMPILE_TIMEOUT_S": "20",
    "WASMKILN_COMPILE_MEMORY_BYTES": "1GiB",
    # Little, so that what is left afterwards is not what the memory tier may hold.
    "WASMKILN_MEMORY_BYTES": "16MiB",
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Phase:
    """One way to attack, and what was measured meanwhile."""

    name: str
    began_s: float
    ended_s: float
    done: dict[str, int]
    """How often the attacker did each thing, and which answers it got."""
    calls: list[Call]
    """The calls that honest callers began meanwhile."""
    afterwards: list[Call]
    """The calls that they began in the seconds after it, until hits were as fast as before."""
    holds: list[Hold]
    samples: list[Sample]
    log_bytes: int


@dataclass(frozen=True)
class Figures:
    """All measurements of an attack."""

    phases: list[Phase]
    before: Sample
    """The daemon after a phase of honest calls alone."""
    after: Sample
    """The daemon after the attack, when it has settled."""
    afterwards: list[str]
    """The honest calls that failed afterwards."""
    condemned: list[str]
    """Honest modules in quarantine."""
    exit_code: int


async def run(
    folder: Path, names: Sequence[str], seconds: float, tell: Tell = lambda _: None
) -> Figures:
    """Attack in each of the ways for ``seconds``; return the measurements."""
    engines = await asyncio.to_thread(installed_engines)
    assert ENGINE in {engine.id for engine in engines}
    server = await asyncio.to_thread(Server, folder / "redis")
    stalls, slow = folder / "stalls", folder / "slow.wasm"
    slow.write_bytes(slow_module())
    key = KeyDirectory.of(folder).public
    environ = {
        **SETTINGS,
        "WASMKILN_REDIS_URL": f"unix://:{PASSWORD}@{server.socket}",
        "WASMKILN_KEYS_DIR": str(folder / "keys"),
    }
    state = state_with(folder / "state", ENGINE)
    try:
        daemon = await asyncio.to_thread(
            Daemon, state, environ=environ, command=inside("tests.e2e.stall_watch", str(stalls))
        )
        try:
            target = Target(
                daemon.address,
                daemon.admin_url.removeprefix("http://"),
                str(server.socket),
                PASSWORD,
                daemon.pid,
                str(slow),
            )
            honest = Honest(target, TrustedKeys([key]))
            sampler = Sampler(daemon, stalls)
            phases = await _phases(honest, sampler, names, seconds, tell)
            tell("waiting for the daemon to settle")
            after = await _settled(sampler, phases[0].samples[-1])
            condemned, afterwards = await _afterwards(target, slow.read_bytes())
        finally:
            exit_code = await asyncio.to_thread(_end, daemon)
    finally:
        server.close()
    before = phases[0].samples[-1]
    return Figures(phases, before, after, afterwards, condemned, exit_code)


def slow_module() -> bytes:
    """Return an honest module that takes some seconds to compile."""
    return wasm.nested_blocks(100_000)


async def _phases(
    honest: Honest, sampler: Sampler, names: Sequence[str], seconds: float, tell: Tell
) -> list[Phase]:
    phases: list[Phase] = []
    usual_s = math.inf
    async with sampler.running(), honest.calling():
        for name in (QUIET, *names):
            tell(WAYS[name].what if name in WAYS else "honest calls alone")
            phases.append(await _phase(honest, sampler, name, seconds, usual_s))
            usual_s = hits_p50_s(phases[0].calls)
    # Some of the calls that began in a phase have ended only now.
    return phases


async def _phase(
    honest: Honest, sampler: Sampler, name: str, seconds: float, usual_s: float
) -> Phase:
    log_bytes = sampler.look().log_bytes
    began_s, first = time.monotonic(), len(honest.ledger.calls)
    done = await _attack(honest.target, name, seconds) if name in WAYS else {}
    if not done:
        await asyncio.sleep(max(0.0, began_s + seconds - time.monotonic()))
    last, over = sampler.look(), len(honest.ledger.calls)
    deadline_s = time.monotonic() + RECOVERY_S + _RECOVERED_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(_POLL_S)
        if is_as_before(last_hits_s(honest.ledger.calls[over:]), usual_s):
            break
    return Phase(
        name,
        began_s,
        last.at_s,
        done,
        honest.ledger.calls[first:over],
        honest.ledger.calls[over:],
        sampler.holds(began_s, last.at_s),
        sampler.within(began_s, last.at_s),
        last.log_bytes - log_bytes,
    )


def hits_p50_s(calls: Sequence[Call]) -> float:
    """Return the median time of the hits among calls; infinite if there are none."""
    hits = [call for call in calls if call.kind == HIT and call.as_expected]
    return percentile(hits, 0.5) if hits else math.inf


def last_hits_s(calls: Sequence[Call]) -> float:
    """Return the median time of the hits of the last half second; infinite before that."""
    if not calls or calls[-1].began_s < calls[0].began_s + _RECOVERED_S:
        return math.inf
    return hits_p50_s([c for c in calls if c.began_s >= calls[-1].began_s - _RECOVERED_S])


def is_as_before(after_s: float, before_s: float) -> bool:
    """Return whether hits are as fast again as they were."""
    return after_s <= 2 * before_s + 0.005


async def _attack(target: Target, name: str, seconds: float) -> dict[str, int]:
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attack.attacker", name, str(seconds)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await asyncio.wait_for(
            attacker.communicate(target.json().encode()), seconds + _ATTACKER_ENDS_S
        )
    finally:
        if attacker.returncode is None:
            attacker.kill()
            await attacker.wait()
    assert attacker.returncode == 0, f"the attacker {name} failed"
    done: dict[str, int] = json.loads(said)
    assert done, f"the attacker {name} did nothing"
    return done


async def _settled(sampler: Sampler, before: Sample) -> Sample:
    """Wait until the daemon holds as little as before, or a minute has passed."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        sample = await asyncio.to_thread(sampler.look)
        settled = (
            sample.descriptors <= before.descriptors
            and sample.memory_bytes <= before.memory_bytes + _SETTLED_MEMORY_BYTES
        )
        if settled or time.monotonic() > deadline:
            return sample
        await asyncio.sleep(0.5)


async def _afterwards(target: Target, slow: bytes) -> tuple[list[str], list[str]]:
    """Return which honest modules are in quarantine, and which calls of a newcomer fail."""
    refused = []
    async with AsyncClient(target.address, max_attempts=1) as client:
        listed = (await client.quarantined(timeout_s=TIMEOUT_S)).modules
        condemned = [
            each.module_sha256 for each in listed if each.module_sha256 == wasm.digest(slow)
        ]
        for what, module in (("slow module", slow), ("small module", wasm.constant(7))):
            try:
                await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)
            except WasmkilnError as failure:
                refused.append(f"{what}: {failure.reason}: {failure.message}")
    return condemned, refused


def _end(daemon: Daemon) -> int:
    daemon.end()
    return daemon.process.returncode
