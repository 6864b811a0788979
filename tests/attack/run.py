"""One attack from beginning to end: each way for a while, one after the other.

Meanwhile honest callers call. None of their calls may fail, whatever the attacker does, and soon
after each way all is as before it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import aiohttp
from wasmkiln import AsyncClient, WasmkilnError
from wasmkiln.attestation import TrustedKeys

from tests.attack.ways import CONNECTIONS, ENGINE, WAYS, Target
from tests.e2e import wasm
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import memory_of
from tests.e2e.programs import ROOT, inside, installed_engines
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stall_watch import holds
from tests.promises import Check, Tell, percentile_s, promises, table
from tests.servers.redis_server import binary_of, redis_server

MIB = 2**20
DEADLINE_S = 5.0
# Of calls that wait for a worker, which an attacker's compiles may hold for 20 s.
TIMEOUT_S = 60.0
RECOVERY_S = 5.0
"""How soon after an attack hits are as fast again as before."""
LONGEST_HOLD_S = 0.05
MOST_LOG_BYTES_PER_S = 64 * 1024
HIT = "memory hit"
# The hits by which it is seen whether all is as before are those of so many seconds.
_RECOVERED_S = 0.5
# Longer than what the daemon holds back for callers that may come again.
_SETTLE_S = 60.0
_SETTLED_BYTES = 48 * MIB
# The memory tier's 16 MiB, and what allocators keep for the next time.
_LEFT_BYTES = 64 * MIB
# Of what the daemon may hold for calls by default: receive_bytes and what follows from it.
_MEANWHILE_BYTES = 512 * MIB
# Frames and connections carry no module, and cost little.
_CONNECTIONS_BYTES = 64 * MIB
_DESCRIPTORS_LEFT = 16
_ATTACKER_ENDS_S = 90.0
SETTINGS = {
    "WASMKILN_WORKERS": "2",
    "WASMKILN_COMPILE_TIMEOUT_S": "20",
    "WASMKILN_COMPILE_MEMORY_BYTES": "1GiB",
    # Little, so that what is left afterwards is not what the memory tier may hold.
    "WASMKILN_MEMORY_BYTES": "16MiB",
}
Act = Callable[[], Awaitable[None]]
# No two runs of one daemon compile the same.
_tags = count(random.SystemRandom().randrange(2**29))


@dataclass(frozen=True)
class Call:
    """One honest call, or some that belong together; ``failed`` says how, if it did."""

    kind: str
    began_s: float
    seconds: float
    failed: str


@dataclass
class Honest:
    """All honest callers, and the calls that have ended."""

    target: Target
    trusted: TrustedKeys
    calls: list[Call] = field(default_factory=list)

    def between(self, began_s: float, ended_s: float) -> list[Call]:
        """Return the calls that began within a span of time, in that order."""
        found = [call for call in self.calls if began_s <= call.began_s < ended_s]
        return sorted(found, key=lambda call: call.began_s)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call while the context lasts, and then wait for the calls under way."""
        over = asyncio.Event()
        async with AsyncExitStack() as stack:
            kinds: list[tuple[str, float, Act]] = [("scrape", 1.0, self._scrape)]
            for name, pause_s, make in (
                (HIT, 0.05, self._hit),
                ("compile", 0.5, self._compile),
                ("questions", 0.3, self._questions),
            ):
                # On a busy machine a request may arrive slowly once, among a crowd of such: who is
                # told to come again may do so, once.
                client = AsyncClient(self.target.address, max_attempts=2, trusted_keys=self.trusted)
                await stack.enter_async_context(client)
                kinds.append((name, pause_s, await make(client)))
            async with asyncio.TaskGroup() as tasks:
                for kind in kinds:
                    tasks.create_task(self._keep(*kind, over))
                try:
                    yield
                finally:
                    over.set()

    async def _keep(self, kind: str, pause_s: float, act: Act, over: asyncio.Event) -> None:
        while not over.is_set():
            began_s, failed = time.monotonic(), ""
            try:
                await act()
            except (WasmkilnError, AssertionError, aiohttp.ClientError, TimeoutError) as failure:
                failed = f"{type(failure).__name__}: {failure}"
            self.calls.append(Call(kind, began_s, time.monotonic() - began_s, failed))
            await asyncio.sleep(pause_s)

    async def _hit(self, client: AsyncClient) -> Act:
        module = wasm.many_functions(300, tag=next(_tags))
        first = await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)

        async def hit() -> None:
            digest = first.header.module_sha256
            again = await client.compile(digest, engine=ENGINE, timeout_s=DEADLINE_S)
            assert again.bytes == first.bytes, f"another artifact than before for {digest}"

        return hit

    async def _compile(self, client: AsyncClient) -> Act:
        async def compile_another() -> None:
            module = wasm.many_functions(50, tag=next(_tags))
            await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)

        return compile_another

    async def _questions(self, client: AsyncClient) -> Act:
        module = wasm.constant(next(_tags))

        async def ask() -> None:
            await client.health(timeout_s=DEADLINE_S)
            await client.stats(timeout_s=DEADLINE_S)
            await client.load(module, timeout_s=TIMEOUT_S)
            await client.find_missing([wasm.digest(module)] * 50, timeout_s=DEADLINE_S)

        return ask

    async def _scrape(self) -> None:
        """Scrape and probe as Prometheus and an orchestrator do, over a new connection."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for page in ("metrics", "readyz"):
                async with session.get(f"http://{self.target.admin}/{page}") as answer:
                    await answer.read()
                    assert answer.status == 200, f"/{page} answered {answer.status}"


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
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """Take a sample, and keep it."""
        pid = self.daemon.pid
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        log_bytes = sum(map(len, list(self.daemon.log_lines)))
        self.samples.append(Sample(time.monotonic(), memory_of(pid), descriptors, log_bytes))
        return self.samples[-1]

    async def look_often(self) -> None:
        """Take five samples a second."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(0.2)


@dataclass
class Phase:
    """One way to attack, or none, and what was measured meanwhile."""

    name: str
    first: Sample
    last: Sample
    recovered_s: float
    """When hits were as fast as before, or the time for that was over."""
    hits_s: float
    """How long hits took then."""
    done: dict[str, int]
    """How often the attacker did each thing, and which answers it got."""
    calls: list[Call] = field(default_factory=list)
    """The calls that honest callers began until hits were as fast as before."""
    longest_hold_s: float = 0.0
    """The longest CPU time for which one callback held the loop; below 5 ms is 0."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """How honest calls failed."""
        return [f"{call.kind}: {call.failed[:200]}" for call in self.calls if call.failed]

    @property
    def log_bytes_per_s(self) -> float:
        """How fast the daemon's log grew."""
        span_s = self.last.at_s - self.first.at_s
        return (self.last.log_bytes - self.first.log_bytes) / span_s

    @property
    def memory_bytes(self) -> int:
        """The most memory that the daemon had."""
        return max(sample.memory_bytes for sample in self.samples)


@dataclass(frozen=True)
class Figures:
    """All measurements of an attack; the first phase is of honest calls alone."""

    phases: list[Phase]
    after: Sample
    """The daemon when it has settled."""
    afterwards: list[str]
    """What was wrong then."""
    exit_code: int


async def run(
    folder: Path, names: Sequence[str], seconds: float, tell: Tell = lambda _: None
) -> Figures:
    """Attack in each of the ways for ``seconds``; return the measurements."""
    engines = await asyncio.to_thread(installed_engines)
    assert ENGINE in {engine.id for engine in engines}
    stalls, slow = folder / "stalls", folder / "slow.wasm"
    slow.write_bytes(wasm.nested_blocks(100_000))  # Some seconds.
    trusted = TrustedKeys([KeyDirectory.of(folder).public])
    with redis_server(binary_of("valkey"), folder / "redis") as server:
        environ = {
            **SETTINGS,
            "WASMKILN_REDIS_URL": server.url,
            "WASMKILN_KEYS_DIR": str(folder / "keys"),
        }
        state = state_with(folder / "state", ENGINE)
        command = inside("tests.e2e.stall_watch", str(stalls))
        daemon = await asyncio.to_thread(Daemon, state, environ=environ, command=command)
        try:
            admin = daemon.admin_url.removeprefix("http://")
            target = Target(daemon.address, admin, server.url, daemon.pid, str(slow))
            honest, sampler = Honest(target, trusted), Sampler(daemon)
            phases = await _phases(honest, sampler, names, seconds, tell)
            tell("waiting for the daemon to settle")
            after = await _settled(sampler, phases[0].samples[-1])
            afterwards = await _afterwards(daemon, slow.read_bytes())
        finally:
            await asyncio.to_thread(daemon.end)
    # Some of the calls that began in a phase have ended only now.
    for phase in phases:
        began_s, ended_s = phase.first.at_s, phase.last.at_s
        phase.calls = honest.between(began_s, phase.recovered_s)
        held = [each.cpu_s for each in holds(stalls) if began_s <= each.at_s <= ended_s]
        phase.longest_hold_s = max(held, default=0.0)
    return Figures(phases, after, afterwards, daemon.process.returncode)


async def _phases(
    honest: Honest, sampler: Sampler, names: Sequence[str], seconds: float, tell: Tell
) -> list[Phase]:
    phases: list[Phase] = []
    usual_s = math.inf
    async with honest.calling():
        sampling = asyncio.create_task(sampler.look_often())
        for name in ("quiet", *names):
            tell(WAYS[name][0] if name in WAYS else "honest calls alone")
            phases.append(await _phase(honest, sampler, name, seconds, usual_s))
            usual_s = usual_s if phases[1:] else hits_p50_s(honest.calls)
        sampling.cancel()
    for phase in phases:
        phase.samples = [
            each for each in sampler.samples if phase.first.at_s <= each.at_s <= phase.last.at_s
        ]
    return phases


async def _phase(
    honest: Honest, sampler: Sampler, name: str, seconds: float, usual_s: float
) -> Phase:
    first, done = sampler.look(), dict[str, int]()
    if name in WAYS:
        done = await _attack(honest.target, name, seconds)
    else:
        await asyncio.sleep(seconds)
    last, hits_s = sampler.look(), math.inf
    while (now_s := time.monotonic()) < last.at_s + RECOVERY_S + _RECOVERED_S:
        hits_s = last_hits_s(honest.between(last.at_s, now_s))
        if is_as_before(hits_s, usual_s):
            break
        await asyncio.sleep(0.05)
    return Phase(name, first, last, time.monotonic(), hits_s, done)


def hits_p50_s(calls: Sequence[Call]) -> float:
    """Return the median time of the hits among calls; infinite if there are none."""
    return statistics.median(_hits_s(calls) or [math.inf])


def _hits_s(calls: Sequence[Call]) -> list[float]:
    return [call.seconds for call in calls if call.kind == HIT and not call.failed]


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
            and sample.memory_bytes <= before.memory_bytes + _SETTLED_BYTES
        )
        if settled or time.monotonic() > deadline:
            return sample
        await asyncio.sleep(0.5)


async def _afterwards(daemon: Daemon, slow: bytes) -> list[str]:
    """Return what is wrong: calls that stay, honest modules in quarantine, a newcomer's calls."""
    wrong = [f"{int(stay)} calls stay"] if (stay := daemon.metric("calls")) else []
    async with AsyncClient(daemon.address, max_attempts=1) as client:
        listed = (await client.quarantined(timeout_s=TIMEOUT_S)).modules
        if wasm.digest(slow) in {one.module_sha256 for one in listed}:
            wrong.append("the slow module is in quarantine")
        for what, module in (("slow module", slow), ("small module", wasm.constant(7))):
            try:
                await client.compile(module, engine=ENGINE, timeout_s=TIMEOUT_S)
            except WasmkilnError as failure:
                wrong.append(f"{what}: {failure.reason}: {failure.message}")
    return wrong


def judge(figures: Figures) -> list[Check]:
    """Return a check for each promise."""
    quiet, *attacks = phases = figures.phases
    before, after = quiet.samples[-1], figures.after
    bad = [f"{what} ({phase.name})" for phase in phases for what in phase.failures]
    allowed = {k for phase in phases for k in phase.done if k.endswith(" allowed")}
    usual_s = hits_p50_s(quiet.calls)
    slowest = max(attacks, key=lambda phase: phase.hits_s)
    longest = max(phases, key=lambda phase: phase.longest_hold_s)
    loudest = max(phases, key=lambda phase: phase.log_bytes_per_s)
    memory = max(phase.memory_bytes for phase in phases)
    connections = max(
        (phase.memory_bytes - phase.first.memory_bytes, phase.name)
        for phase in phases
        if phase.name in {*CONNECTIONS, quiet.name}
    )
    return [
        Check(
            "honest calls that failed or got a wrong artifact: 0",
            "; ".join([f"{len(bad)} of {sum(len(each.calls) for each in phases):,}", *bad[:8]]),
            not bad,
        ),
        Check(
            f"hits within {RECOVERY_S:.0f} s after an attack: a p50 of at most twice that before,"
            " and 5 ms",
            f"{slowest.hits_s * 1e3:.1f} ms ({slowest.name}; before {usual_s * 1e3:.1f})",
            is_as_before(slowest.hits_s, usual_s),
        ),
        Check(
            "the longest time that one callback held the loop: at most"
            f" {LONGEST_HOLD_S * 1e3:.0f} ms",
            f"{longest.longest_hold_s * 1e3:.0f} ms ({longest.name})",
            longest.longest_hold_s <= LONGEST_HOLD_S,
        ),
        Check(
            f"memory afterwards: at most {_LEFT_BYTES // MIB} MiB more than before,"
            f" meanwhile {_MEANWHILE_BYTES // MIB} MiB",
            f"{after.memory_bytes // MIB} MiB (before {before.memory_bytes // MIB},"
            f" at most {memory // MIB})",
            after.memory_bytes <= before.memory_bytes + _LEFT_BYTES
            and memory <= before.memory_bytes + _MEANWHILE_BYTES,
        ),
        Check(
            f"memory for frames and connections: at most {_CONNECTIONS_BYTES // MIB} MiB",
            f"{connections[0] // MIB} MiB ({connections[1]})",
            connections[0] <= _CONNECTIONS_BYTES,
        ),
        Check(
            f"descriptors afterwards: at most {_DESCRIPTORS_LEFT} more than before",
            f"{after.descriptors} (before {before.descriptors})",
            after.descriptors <= before.descriptors + _DESCRIPTORS_LEFT,
        ),
        Check(
            f"growth of the log: at most {MOST_LOG_BYTES_PER_S // 1024} KiB/s more than without"
            " attack",
            f"{loudest.log_bytes_per_s / 1024:.1f} KiB/s ({loudest.name};"
            f" without {quiet.log_bytes_per_s / 1024:.1f})",
            loudest.log_bytes_per_s <= MOST_LOG_BYTES_PER_S + quiet.log_bytes_per_s,
        ),
        Check(
            "calls that stay, honest modules in quarantine, calls of a newcomer that fail"
            " afterwards: 0",
            "; ".join(figures.afterwards) or "0",
            not figures.afterwards,
        ),
        Check(
            "signals and limits that others could set: 0", "; ".join(allowed) or "0", not allowed
        ),
        Check(
            "the daemon's exit code after SIGTERM: 0",
            str(figures.exit_code),
            figures.exit_code == 0,
        ),
    ]


def markdown(figures: Figures, checks: Sequence[Check]) -> str:
    """Return all figures as tables for docs/explanation/reliability.md."""
    rows = [[cell(phase) for cell in COLUMNS.values()] for phase in figures.phases]
    return "\n".join([*promises(checks), "", *table(tuple(COLUMNS), rows)])


COLUMNS: dict[str, Callable[[Phase], str]] = {
    "attack": lambda phase: WAYS[phase.name][0] if phase.name in WAYS else "none",
    "what the attacker did": lambda phase: ", ".join(f"{k} {n:,}" for k, n in phase.done.items()),
    "honest calls": lambda phase: f"{len(phase.calls):,}",
    "failed": lambda phase: f"{len(phase.failures):,}",
    "hits, p50 ms": lambda phase: f"{percentile_s(_hits_s(phase.calls), 0.5) * 1e3:.1f}",
    "p99 ms": lambda phase: f"{percentile_s(_hits_s(phase.calls), 0.99) * 1e3:.1f}",
    "loop held, ms": lambda phase: f"{phase.longest_hold_s * 1e3:.0f}",
    "memory, MiB": lambda phase: str(phase.memory_bytes // MIB),
    "descriptors": lambda phase: f"{max(each.descriptors for each in phase.samples):,}",
    "log, KiB/s": lambda phase: f"{phase.log_bytes_per_s / 1024:.1f}",
}
