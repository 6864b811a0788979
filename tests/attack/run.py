"""One attack from beginning to end: each way for a while, one after the other."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wasmkiln import AsyncClient, WasmkilnError
from wasmkiln.attestation import TrustedKeys

from tests.attack.honest import HIT, TIMEOUT_S, Call, Honest
from tests.attack.ways import ENGINE, WAYS, Target
from tests.e2e import wasm
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import memory_of
from tests.e2e.programs import ROOT, inside, installed_engines
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stall_watch import holds
from tests.servers.redis_server import binary_of, redis_server

QUIET = "quiet"
"""The name of the phase in which nobody attacks."""
# Longer than what the daemon holds back for callers that may come again.
_SETTLE_S = 60.0
RECOVERY_S = 5.0
"""How soon after an attack hits are as fast again as before."""
_RECOVERED_S = 0.5
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
class Sample:
    """One sample of the daemon's own process."""

    at_s: float
    memory_bytes: int
    descriptors: int
    log_bytes: int
    """What the daemon has written to standard error since its start."""


@dataclass
class Sampler:
    """Takes samples of a daemon that runs under ``tests.e2e.stall_watch``."""

    daemon: Daemon
    stalls: Path
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """Take a sample, and keep it."""
        pid = self.daemon.pid
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        log_bytes = sum(map(len, list(self.daemon.log_lines)))
        sample = Sample(time.monotonic(), memory_of(pid), descriptors, log_bytes)
        self.samples.append(sample)
        return sample

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take five samples a second while the context lasts."""

        async def sample() -> None:
            while True:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(0.2)

        task = asyncio.create_task(sample())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass
class Phase:
    """One way to attack, and what was measured meanwhile."""

    name: str
    began_s: float
    ended_s: float
    recovered_s: float
    """When hits were as fast as before, or the time for that was over."""
    recovered_hits_s: float
    """How long hits took then."""
    done: dict[str, int]
    """How often the attacker did each thing, and which answers it got."""
    log_bytes: int
    calls: list[Call] = field(default_factory=list)
    """The calls that honest callers began meanwhile."""
    afterwards: list[Call] = field(default_factory=list)
    """The calls that they began from then on until hits were as fast as before."""
    longest_hold_s: float = 0.0
    """The longest CPU time for which one callback held the loop; below 5 ms is 0."""
    samples: list[Sample] = field(default_factory=list)


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
    stalls, slow = folder / "stalls", folder / "slow.wasm"
    slow.write_bytes(wasm.nested_blocks(100_000))  # Some seconds.
    key = KeyDirectory.of(folder).public
    with redis_server(binary_of("valkey"), folder / "redis") as server:
        environ = {
            **SETTINGS,
            "WASMKILN_REDIS_URL": server.url,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
        }
        daemon = await asyncio.to_thread(
            Daemon,
            state_with(folder / "state", ENGINE),
            environ=environ,
            command=inside("tests.e2e.stall_watch", str(stalls)),
        )
        try:
            admin = daemon.admin_url.removeprefix("http://")
            target = Target(daemon.address, admin, server.url, daemon.pid, str(slow))
            honest, sampler = Honest(target, TrustedKeys([key])), Sampler(daemon, stalls)
            phases = await _phases(honest, sampler, names, seconds, tell)
            tell("waiting for the daemon to settle")
            before = phases[0].samples[-1]
            after = await _settled(sampler, before)
            condemned, afterwards = await _afterwards(target, slow.read_bytes())
        finally:
            await asyncio.to_thread(daemon.end)
    return Figures(phases, before, after, afterwards, condemned, daemon.process.returncode)


async def _phases(
    honest: Honest, sampler: Sampler, names: Sequence[str], seconds: float, tell: Tell
) -> list[Phase]:
    phases: list[Phase] = []
    usual_s = math.inf
    async with sampler.running(), honest.calling():
        for name in (QUIET, *names):
            tell(WAYS[name][0] if name in WAYS else "honest calls alone")
            phases.append(await _phase(honest, sampler, name, seconds, usual_s))
            usual_s = usual_s if phases[1:] else hits_p50_s(honest.calls)
    # Some of the calls that began in a phase have ended only now.
    for phase in phases:
        phase.calls = honest.between(phase.began_s, phase.ended_s)
        phase.afterwards = honest.between(phase.ended_s, phase.recovered_s)
        held = [h.cpu_s for h in holds(sampler.stalls) if phase.began_s <= h.at_s <= phase.ended_s]
        phase.longest_hold_s = max(held, default=0.0)
        phase.samples = [s for s in sampler.samples if phase.began_s <= s.at_s <= phase.ended_s]
    return phases


async def _phase(
    honest: Honest, sampler: Sampler, name: str, seconds: float, usual_s: float
) -> Phase:
    first = sampler.look()
    done = await _attack(honest.target, name, seconds) if name in WAYS else {}
    if not done:
        await asyncio.sleep(max(0.0, first.at_s + seconds - time.monotonic()))
    last = sampler.look()
    hits_s = math.inf
    while (now_s := time.monotonic()) < last.at_s + RECOVERY_S + _RECOVERED_S:
        hits_s = last_hits_s(honest.between(last.at_s, now_s))
        if is_as_before(hits_s, usual_s):
            break
        await asyncio.sleep(0.05)
    log_bytes = last.log_bytes - first.log_bytes
    return Phase(name, first.at_s, last.at_s, time.monotonic(), hits_s, done, log_bytes)


def hits_of(calls: Sequence[Call]) -> list[float]:
    """Return how long each hit took that did not fail."""
    return [call.seconds for call in calls if call.kind == HIT and not call.failed]


def hits_p50_s(calls: Sequence[Call]) -> float:
    """Return the median time of the hits among calls; infinite if there are none."""
    return statistics.median(hits_of(calls) or [math.inf])


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
        *(sys.executable, "-m", "tests.attack.ways", name, str(seconds)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        told = json.dumps(asdict(target)).encode()
        said, _ = await asyncio.wait_for(attacker.communicate(told), seconds + _ATTACKER_ENDS_S)
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
        condemned = [one.module_sha256 for one in listed if one.module_sha256 == wasm.digest(slow)]
        for what, module in (("slow module", slow), ("small module", wasm.constant(7))):
            try:
                await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)
            except WasmkilnError as failure:
                refused.append(f"{what}: {failure.reason}: {failure.message}")
    return condemned, refused
