"""Start the workers of installed engines, test each engine, and read its capabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from wasmkilnd.engines.install.in_use import hold
from wasmkilnd.engines.install.self_test import SelfTestFailed, own_limits, self_test
from wasmkilnd.engines.install.store import InstalledEngine
from wasmkilnd.engines.install.vetting import check_engine
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.verdicts.engine_messages import cause_line
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.isolation import IsolationGuard, NotConfined
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.engines.workers.pool import Neighbours, WorkerPool
from wasmkilnd.engines.workers.process import OutOfDescriptors, Worker, WorkerDied
from wasmkilnd.engines.workers.spawn import start_worker
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import (
    EngineCapabilities,
    EngineIdentity,
    Kind,
    Limits,
    SettingInfo,
    TargetInfo,
    UnservedEngine,
)
from wasmkilnd.ownership import NotOurs
from wasmkilnd.ports import Recorder
from wasmkilnd.reloadable import Reloadable

log = structlog.get_logger("wasmkilnd.engines")


class EngineUnusable(Exception):  # noqa: N818 - says what the engine is
    """An installed engine does not work; the message says why."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How each engine's workers are run."""

    size: int
    """Workers per engine."""
    limits: Reloadable[Limits]
    threads: int
    """Threads of one compilation."""
    recorder: Recorder
    guard: IsolationGuard
    users: JobUsers
    neighbours: Neighbours = field(default_factory=Neighbours)
    """The jobs of all engines."""


async def serve_engines(
    engines: Sequence[InstalledEngine], options: WorkerOptions
) -> tuple[list[ServedEngine], list[UnservedEngine]]:
    """Start all engines; return those that work, and those that do not with the reason.

    Whatever is wrong with one engine does not stop the others.
    """
    outcomes = await asyncio.gather(
        *(_serve_engine(engine, options) for engine in engines), return_exceptions=True
    )
    served, unserved = [], []
    for engine, outcome in zip(engines, outcomes, strict=True):
        if isinstance(outcome, ServedEngine):
            served.append(outcome)
        elif isinstance(outcome, EngineUnusable):
            unserved.append(UnservedEngine(engine.id, str(outcome)))
        else:
            raise outcome
    return served, unserved


async def _serve_engine(engine: InstalledEngine, options: WorkerOptions) -> ServedEngine:
    """Start an engine's workers, ask it what it can do, and test it. Raises EngineUnusable."""

    async def start() -> Worker:
        user = await options.users.pick()
        worker = await start_worker(engine.interpreter, engine.name, options.threads, user)
        try:
            options.guard.admit(engine.id, worker.isolation)
            await worker.run(job_orders.nothing(options.limits.current))
        except (NotConfined, OutOfDescriptors) as failure:
            await worker.kill()
            raise WorkerDied(str(failure)) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    pool = WorkerPool(
        engine.id,
        start,
        size=options.size,
        limits=options.limits,
        recorder=options.recorder,
        neighbours=options.neighbours,
    )
    try:
        # Before the first worker, which would run what it finds there as the daemon's user.
        await asyncio.to_thread(check_engine, engine.path, engine.interpreter)
        await pool.start()
        capabilities = await _ask(pool)
        if capabilities.identity.id != engine.id:
            raise EngineUnusable(f"it calls itself {capabilities.identity.id}")
        await self_test(capabilities, pool)
        return ServedEngine(capabilities, pool, engine.is_there, hold(engine))
    except BaseException as failure:
        await pool.close()
        if isinstance(failure, EngineUnusable) or not isinstance(failure, Exception):
            raise
        raise EngineUnusable(_in_words(failure)) from None


async def _ask(pool: WorkerPool) -> EngineCapabilities:
    report, _ = await pool.run(job_orders.describe(own_limits()))
    if report.protocol_error or not report.result:
        words = report.protocol_error or cause_line(report.last_words)
        raise EngineUnusable(words or "it did not report its capabilities")
    return _capabilities(report.result["capabilities"])


def _in_words(failure: Exception) -> str:
    if isinstance(failure, SelfTestFailed):
        return f"the self-test failed: {failure}"
    if isinstance(failure, FileNotFoundError):
        return f"it is incomplete, without {failure.filename}: remove it, and install it again"
    if isinstance(failure, WorkerDied | WasmkilnError | OSError | NotOurs):
        return str(failure)
    # Capabilities that the daemon cannot read, for example.
    return f"it broke the job protocol ({type(failure).__name__}: {failure})"


def _capabilities(description: dict[str, Any]) -> EngineCapabilities:
    return EngineCapabilities(
        identity=EngineIdentity(
            description["name"],
            description["version"],
            description["core_version"],
            description["compiler"],
        ),
        interpreter=description["interpreter"],
        host_triple=description["host_triple"],
        host_cpu_features=tuple(description["host_cpu_features"]),
        targets=tuple(
            TargetInfo(target["triple"], tuple(target["cpus"]), target["host"])
            for target in description["targets"]
        ),
        settings=tuple(
            SettingInfo(
                setting["name"],
                setting["default"],
                tuple(setting["allowed"]),
                setting["description"],
            )
            for setting in description["settings"]
        ),
        wasm_features=tuple(description["wasm_features"]),
        kinds=frozenset(Kind(kind) for kind in description["kinds"]),
    )
