"""Bring installed engines into service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from wasmkilnd.engines.isolation import IsolationGuard, NotConfined
from wasmkilnd.engines.pool import WorkerPool
from wasmkilnd.engines.process import JobOrder, Worker, WorkerDied
from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.engines.store import InstalledEngine
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import EngineCapabilities, EngineIdentity, Kind, SettingInfo, TargetInfo

log = structlog.get_logger("wasmkilnd.engines")

_DESCRIBE_TIMEOUT_S = 60.0
_DESCRIBE_MEMORY_BYTES = 4 * 1024**3


class EngineUnusable(Exception):  # noqa: N818 - says what the engine is
    """An installed engine does not work; the message says why."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How each engine's workers are run."""

    size: int
    """Workers per engine."""
    queue_length: int
    threads: int
    """Threads of one compilation."""
    on_replaced: Callable[[str], None]
    guard: IsolationGuard


async def serve_engine(engine: InstalledEngine, options: WorkerOptions) -> ServedEngine:
    """Start an engine's workers and ask it what it can do. Raises EngineUnusable."""

    async def start_worker() -> Worker:
        worker = await Worker.start(engine.interpreter, engine.name, options.threads)
        try:
            options.guard.admit(engine.id, worker.isolation)
        except NotConfined as failure:
            await worker.kill()
            raise WorkerDied(str(failure)) from None
        return worker

    pool = WorkerPool(
        engine.id,
        start_worker,
        size=options.size,
        queue_length=options.queue_length,
        on_replaced=options.on_replaced,
    )
    try:
        await pool.start()
        report, _ = await pool.run(
            JobOrder(
                order={"op": "describe"},
                wasm=None,
                timeout_s=_DESCRIBE_TIMEOUT_S,
                cpu_s=_DESCRIBE_TIMEOUT_S,
                memory_bytes=_DESCRIBE_MEMORY_BYTES,
            )
        )
        if not report.result:
            raise EngineUnusable(report.last_words or "it did not say what it can do")
        return ServedEngine(_capabilities(report.result["capabilities"]), pool)
    except (WorkerDied, WasmkilnError, OSError, KeyError, TypeError, ValueError) as failure:
        await pool.close()
        raise EngineUnusable(str(failure)) from None
    except BaseException:
        await pool.close()
        raise


async def serve_engines(
    engines: list[InstalledEngine], options: WorkerOptions
) -> list[ServedEngine]:
    """Start all; leave out, with a line in the log, those that do not work."""
    outcomes = await asyncio.gather(
        *(serve_engine(engine, options) for engine in engines),
        return_exceptions=True,
    )
    served = []
    for engine, outcome in zip(engines, outcomes, strict=True):
        if isinstance(outcome, ServedEngine):
            served.append(outcome)
        elif isinstance(outcome, EngineUnusable):
            log.error("engine is not served", engine=engine.id, cause=str(outcome))
        else:
            raise outcome
    return served


def _capabilities(said: dict[str, Any]) -> EngineCapabilities:
    return EngineCapabilities(
        identity=EngineIdentity(
            said["name"], said["version"], said["core_version"], said["compiler"]
        ),
        interpreter=said["interpreter"],
        host_triple=said["host_triple"],
        host_cpu_features=tuple(said["host_cpu_features"]),
        targets=tuple(
            TargetInfo(target["triple"], tuple(target["cpus"]), target["host"])
            for target in said["targets"]
        ),
        settings=tuple(
            SettingInfo(
                setting["name"],
                setting["default"],
                tuple(setting["allowed"]),
                setting["description"],
            )
            for setting in said["settings"]
        ),
        wasm_features=tuple(said["wasm_features"]),
        kinds=frozenset(Kind(kind) for kind in said["kinds"]),
    )
