"""``python -m bench.fleet``: a fleet at scale, by simulation.

Each simulated daemon has the real path of Compile: flights, memory, host store, Redis, object
store, leases, signatures. They run in one process, over one real Valkey and a real object store.
Only engines are made up: a job waits for as long as a real compile takes, by a distribution that
was measured, and returns random bytes. So that a machine can hold it, artifacts are ``SHRINK``
times smaller than they would be, tiers hold as many *artifacts* as they would, and jobs are
``--speed`` times quicker. Bytes and seconds in the result are those of a real fleet.

Callers ask any daemon for any module, by Zipf's law: digest first, then the module. Phases follow
one another; the table has a line for each.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import logging
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import structlog
from wasmkiln import TrustedKeys
from wasmkilnd import model, options
from wasmkilnd.cache.host_store import HostDirectory
from wasmkilnd.compile import Request, Served
from wasmkilnd.engines.verdict import CompiledCode, JobResult
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CompileSpec, EngineIdentity, Module, Origin
from wasmkilnd.redis.embedded import EmbeddedServer, SharedServer
from wasmkilnd.settings import RedisUrl, Settings
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants
from wasmkilnd.waits.flights import FairShare

from bench.lab import ROOT
from bench.plot import drawn
from tests.frames import pack
from tests.servers.redis_server import binary_of, redis_server

PICTURE = ROOT / "docs" / "how-to" / "fleet.svg"

SHRINK = 1024
# Of 58 real modules up to 5 MiB (docs/how-to/size.md): half of them compile within 0.1 s, nine of
# ten within 1 s; half of their artifacts have 0.5 MB, nine of ten 3.5 MB. Log-normal.
_COMPILE_S, _ARTIFACT_BYTES = (0.1, 1.0), (0.5e6, 3.5e6)
_P90 = statistics.NormalDist().inv_cdf(0.9)
_LONGEST_S, _LARGEST_BYTES = 30.0, 32e6
# zstd shrinks real artifacts to 0.41 to 0.47 of their size, and random bytes not at all.
_STORED = 0.44
# How many artifacts of that size 256 MiB and 4 GiB hold, the defaults of memory and host store.
_IN_MEMORY, _IN_HOST_STORE = 180, 2_900
# What an entry of a few bytes takes in the simulated memory, and on the disk.
_ENTRY_BYTES, _FILES_BYTES = 4_200, 17_000
_WORKERS, _PATIENCE_S = 2, 60.0
# A fleet that has just begun has most to learn.
_FIRST = 4
_TIERS = (
    Origin.MEMORY,
    Origin.HOST_STORE,
    Origin.REDIS,
    Origin.OBJECT_STORE,
    Origin.JOINED_FLIGHT,
    Origin.COMPILED,
)


def _drawn(rank: int, salt: str, half: float, most: float) -> float:
    """Return a figure of a log-normal distribution by its median and 90th percentile."""
    spread = statistics.NormalDist(0, 1)
    digest = hashlib.sha256(f"{salt}{rank}".encode()).digest()
    at = (int.from_bytes(digest[:6]) + 0.5) / (1 << 48)
    return float(half * (most / half) ** (spread.inv_cdf(at) / _P90))


@dataclass(frozen=True)
class Made:
    """A made-up module, and what of a real one of its rank would be."""

    wasm: bytes
    sha256: str
    artifact_bytes: float
    compile_s: float

    @classmethod
    def of(cls, rank: int) -> Made:
        """Return the module of a rank in Zipf's law."""
        wasm = b"\0asm\1\0\0\0" + rank.to_bytes(8)
        size = min(_drawn(rank, "size", *_ARTIFACT_BYTES), _LARGEST_BYTES)
        took = min(_drawn(rank, "time", *_COMPILE_S), _LONGEST_S)
        return cls(wasm, hashlib.sha256(wasm).hexdigest(), size, took)


class Engines:
    """The engines of one daemon: workers that sleep. Stands in for ``EngineRegistry``."""

    served: Sequence[Any] = ()

    def __init__(self, speed: float, compiled: Counter[model.CacheKey]) -> None:
        """Jobs take a ``speed``-th of their time; each counts in ``compiled``."""
        self._speed, self._compiled = speed, compiled
        self._free = asyncio.Semaphore(_WORKERS)
        self.version = 1

    def choose(self, _engine: str, _kind: model.Kind | None) -> str:
        """Return the only engine."""
        return f"made-{self.version}"

    def spec(self, engine: str, _target: str, _cpu: str, _settings: object) -> CompileSpec:
        """Return the only spec of a version."""
        version = engine.partition("-")[2]
        identity = EngineIdentity("made", version, version, "up")
        digest = hashlib.sha256(version.encode()).hexdigest()
        return CompileSpec(identity, "x86_64-unknown-linux-gnu", "x86-64-v3", {}, {}, digest)

    def fast(self, _spec: CompileSpec, _settings: object) -> None:
        """Return that there is no fast compiler."""

    async def compile(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Any,
        _metrics: Metrics,
        *,
        ready: Callable[[float], Awaitable[bool]],
        unless: Callable[[], Awaitable[None]],
    ) -> CompiledCode | None:
        """Wait for a worker, then for as long as a job would run; see ``EngineRegistry``."""
        began_s = time.monotonic()
        turn, stored = asyncio.ensure_future(self._free.acquire()), asyncio.ensure_future(unless())
        try:
            await asyncio.wait((turn, stored), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                return None
            queued_s = time.monotonic() - began_s
            if not await ready(queued_s):
                return None
            waiters.kept = True
            made = Made.of(int.from_bytes(module.wasm[8:]))
            await asyncio.sleep(made.compile_s / self._speed)
            self._compiled[spec.key_for(module.sha256)] += 1
            code = pack(os.urandom(max(16, int(made.artifact_bytes / SHRINK))))
            return CompiledCode(code, JobResult(outcome="ok", seconds=made.compile_s), queued_s)
        finally:
            stored.cancel()
            if not turn.cancel() and not turn.cancelled():
                self._free.release()


@dataclass
class Site:
    """What all daemons of a simulation share."""

    folder: Path
    redis_url: str
    sealer: Sealer
    speed: float
    host_store: bool
    object_store_url: str
    compiled: Counter[model.CacheKey] = field(default_factory=Counter)


class Daemon:
    """One simulated daemon, with empty memory and an empty host store."""

    def __init__(self, site: Site, name: str) -> None:
        settings = Settings(
            state_dir=site.folder / name,
            redis_url=RedisUrl(site.redis_url),
            object_store_url=site.object_store_url,
            # One event loop has all daemons: answers seem late.
            redis_timeout_s=_PATIENCE_S,
            object_store_timeout_s=_PATIENCE_S,
            memory_bytes=_IN_MEMORY * _ENTRY_BYTES,
            host_store_bytes=_IN_HOST_STORE * _FILES_BYTES if site.host_store else 0,
        )
        self.engines, self._calls = Engines(site.speed, site.compiled), 0
        self._idle = asyncio.Event()
        self._idle.set()
        embedded = EmbeddedServer(settings.state_dir, 0)
        self._server = SharedServer(
            site.redis_url, options.redis_access(settings), embedded, timeout_s=_PATIENCE_S
        )
        self._bucket = options.open_bucket(settings)
        self._tenants = Tenants(
            *(model.Reloadable(settings), Metrics("bench"), self._server, self._bucket),
            *(HostDirectory(options.host_options(settings)), self.engines, {}),  # type: ignore[arg-type]
            served_engines=dict,
            in_progress=FairShare(lambda: 1 << 30),
            slots=asyncio.Semaphore(1),
            module_bytes=lambda: settings.max_module_bytes,
            sealer=site.sealer,
        )

    async def start(self) -> None:
        """Connect, and open the host store."""
        await self._server.start()
        if self._bucket:
            await self._bucket.start()
        await self._tenants.start()

    async def stop(self) -> None:
        """Write what waits, and close, after the calls under way."""
        await self._idle.wait()
        await self._tenants.settle()
        await self._tenants.flush(30)
        await self._tenants.close()
        await self._server.close()
        if self._bucket:
            await self._bucket.close()

    async def ask(self, made: Made) -> Served:
        """Ask for an artifact as clients do: by digest, then with the module."""
        compiler = self._tenants.of("").compiler
        self._calls += 1
        self._idle.clear()
        try:
            return await compiler.compile(Request(sha256=made.sha256))
        except WasmkilnError as failure:
            if failure.reason is not Reason.MODULE_NOT_LOADED:
                raise
            return await compiler.compile(Request(wasm=made.wasm))
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()


@dataclass
class Phase:
    """What a fleet did in one phase."""

    name: str
    calls: int
    origins: Counter[Origin]
    again: int
    """How often a key was compiled that some daemon had compiled before."""
    moved: Counter[Origin]
    """How many bytes were read from each tier, as they are stored there."""
    commands: int
    redis_entries: int
    redis_bytes: int
    """What Redis held in the end, as of real artifacts."""
    recovered: int
    """After how many calls as many of a thousand were hits as before the phase; 0 for at once."""

    def share(self, origin: Origin) -> float:
        """Return which part of the calls an origin answered."""
        return self.origins[origin] / self.calls


class Simulation:
    """A fleet, its traffic, and what is counted of it."""

    def __init__(self, site: Site, server: redis.Redis, chosen: argparse.Namespace) -> None:
        self._site, self._redis, self._chosen = site, server, chosen
        self._names = itertools.count()
        self._random = random.Random(7)
        ranks = range(1, chosen.modules + 1)
        self._made = [Made.of(rank) for rank in ranks]
        self._weights = list(itertools.accumulate(rank**-chosen.exponent for rank in ranks))
        self.daemons: list[Daemon] = []
        self._usual = 0.0
        self.wrong = 0

    async def grow(self) -> None:
        """Start all daemons."""
        for _ in range(self._chosen.daemons):
            self.daemons.append(await self._new())

    async def _new(self, version: int = 1) -> Daemon:
        daemon = Daemon(self._site, f"daemon-{next(self._names)}")
        daemon.engines.version = version
        await daemon.start()
        return daemon

    async def replaced(self, indices: Sequence[int]) -> None:
        """Stop some daemons, and start as many with nothing in memory and no host store."""
        for index in indices:
            old = self.daemons[index]
            self.daemons[index] = await self._new(old.engines.version)
            await old.stop()

    async def phase(
        self, name: str, calls: int, events: Sequence[Callable[[], Awaitable[None]]]
    ) -> Phase:
        """Have the calls of a phase; ``events`` happen one after the other meanwhile."""
        chosen, random_ = self._chosen, self._random
        origins, moved = Counter[Origin](), Counter[Origin]()
        before, commands = Counter(self._site.compiled), self._commands()
        hits = list[bool]()
        left = iter(range(calls))
        every = calls // max(1, len(events))
        waiting = list(events)

        async def caller() -> None:
            for number in left:
                if waiting and number % every == 0:
                    await waiting.pop(0)()
                [made] = random_.choices(self._made, cum_weights=self._weights)
                served = await random_.choice(self.daemons).ask(made)
                origin = served.origin
                origins[origin] += 1
                hits.append(origin not in (Origin.COMPILED, Origin.JOINED_FLIGHT))
                moved[origin] += int(made.artifact_bytes * _STORED)
                self.wrong += served.artifact.module_sha256 != made.sha256

        await asyncio.gather(*(caller() for _ in range(chosen.callers)))
        windows = [statistics.fmean(hits[at : at + 1000]) for at in range(0, len(hits), 1000)]
        as_before = (at for at, share in enumerate(windows) if share >= self._usual - 0.01)
        self._usual = statistics.fmean(windows[-5:])
        made, known = self._site.compiled, set(before)
        return Phase(
            name,
            calls,
            origins,
            (made - before).total() - len(made.keys() - known),
            moved,
            self._commands() - commands,
            *self._held(),
            1000 * next(as_before, len(windows)),
        )

    def _commands(self) -> int:
        told: Any = self._redis.info()
        return int(told["total_commands_processed"])

    def _held(self) -> tuple[int, int]:
        """Return how many entries Redis has, and their bytes if the artifacts were real."""
        count: Any = self._redis.dbsize()
        mean = statistics.fmean(made.artifact_bytes for made in self._made) * _STORED
        # Of an artifact there are itself, its module and a set.
        return count, int(count / 3 * (mean + 3_200))


async def simulate(chosen: argparse.Namespace, folder: Path, *, objects: bool) -> list[Phase]:
    """Have a fleet live through all phases."""
    key = PrivateKey.generate()
    sealer = Sealer(Keys(key, TrustedKeys([key.public])), "bench")
    async with AsyncExitStack() as stack:
        running = stack.enter_context(redis_server(binary_of("valkey"), folder / "redis"))
        server = stack.enter_context(redis.Redis.from_url(running.url))
        where = f"file://{folder / 'objects'}" if objects else ""
        (folder / "objects").mkdir()
        site = Site(folder, running.url, sealer, chosen.speed, chosen.host_store, where)
        fleet = Simulation(site, server, chosen)
        await fleet.grow()
        tenths = [list(range(at, chosen.daemons, 10)) for at in range(min(10, chosen.daemons))]

        async def flushed() -> None:
            await asyncio.to_thread(server.flushall)

        def upgraded(some: Sequence[int]) -> Callable[[], Awaitable[None]]:
            async def upgrade() -> None:
                for index in some:
                    fleet.daemons[index].engines.version = 2

            return upgrade

        def wave(some: Sequence[int]) -> Callable[[], Awaitable[None]]:
            return lambda: fleet.replaced(some)

        phases = list[Phase]()
        plan: dict[str, list[Callable[[], Awaitable[None]]]] = {
            "first traffic": [],
            "as usual": [],
            "deploy wave": [wave(some) for some in tenths],
            "engine upgrade": [upgraded(some) for some in tenths],
            "as usual again": [],
            "Redis loses all": [flushed],
            "and every daemon, too": [flushed, wave(range(chosen.daemons))],
        }
        for name, events in plan.items():
            calls = chosen.calls if phases else _FIRST * chosen.calls
            phases.append(await fleet.phase(name, calls, events))
            print(f"  {name}", file=sys.stderr, flush=True)
        for daemon in fleet.daemons:
            await daemon.stop()
        assert not fleet.wrong
        return phases


def markdown(phases: Sequence[Phase]) -> str:
    """Return the table for docs/how-to/size.md."""
    head = (
        "phase",
        "memory",
        "host store",
        "Redis",
        "object store",
        "joined",
        "compiled",
        "of these again",
        "read from Redis",
        "from the object store",
        "Redis commands a call",
        "calls until as before",
    )
    rows = [" | ".join(head), " | ".join(["---"] + ["--:"] * (len(head) - 1))]
    for each in phases:
        cells = [each.name, *(f"{100 * each.share(tier):.1f} %" for tier in _TIERS)]
        cells += [f"{100 * each.again / each.calls:.2f} %"]
        cells += [
            f"{each.moved[tier] / 1e9:.1f} GB" for tier in (Origin.REDIS, Origin.OBJECT_STORE)
        ]
        cells += [f"{each.commands / each.calls:.2f}", f"{each.recovered:,}"]
        rows.append(" | ".join(cells))
    return "\n".join(f"| {row} |" for row in rows)


def picture(phases: Sequence[Phase]) -> bytes:
    """Return who answered the calls of each phase, as stacked bars."""
    return drawn(
        "HorizontalStackedBar",
        "Who answered the calls of each phase, in per cent",
        [each.name for each in phases],
        {
            tier.value.replace("_", " "): [100 * each.share(tier) for each in phases]
            for tier in _TIERS
        },
        colors=("#2da44e", "#7cc08f", "#4493f8", "#8b6fd6", "#d4a72c", "#e5534b"),
        height=420,
        truncate_legend=-1,
        range=(0, 100),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate with and without an object store, and print both tables. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    add = parser.add_argument
    add("--daemons", type=int, default=100, help="how many (%(default)s)")
    add("--modules", type=int, default=100_000, help="of how many callers ask (%(default)s)")
    add("--calls", type=int, default=10_000, help="in each phase but the first (%(default)s)")
    add("--callers", type=int, default=100, help="how many call at a time (%(default)s)")
    add("--exponent", type=float, default=1.0, help="of Zipf's law (%(default)s)")
    add("--speed", type=float, default=20.0, help="how much quicker jobs are (%(default)s)")
    add("--without-host-store", dest="host_store", action="store_false", help="for 1,000 daemons")
    add("--page", action="store_true", help=f"write the picture {PICTURE.name}")
    chosen = parser.parse_args(arguments)
    # That what is flushed is lost, each daemon would tell.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # Each daemon has connections and threads of its own; Valkey inherits the limit.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for objects in (False, True):
        where = "with an object store" if objects else "without an object store"
        print(f"{chosen.daemons} daemons, {chosen.modules:,} modules, {where}:", flush=True)
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="wasmkiln-fleet-") as folder:
            phases = asyncio.run(simulate(chosen, Path(folder), objects=objects))
        held = max(phases, key=lambda each: each.redis_entries)
        print(markdown(phases))
        print(
            f"\nRedis held {held.redis_entries:,} keys at most, {held.redis_bytes / 1e9:.0f} GB of"
            f" real artifacts. {time.monotonic() - began_s:,.0f} s."
        )
    if chosen.page:
        PICTURE.write_bytes(picture(phases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
