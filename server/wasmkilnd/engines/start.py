"""Bring installed engines into service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from wasmkilnd.engines.pool import WorkerPool
from wasmkilnd.engines.process import JobOrder, WorkerDied
from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.engines.store import InstalledEngine
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import EngineCapabilities, EngineIdentity, Kind, SettingInfo, TargetInfo

log = structlog.get_logger("wasmkilnd.engines")

_DESCRIBE_TIMEOUT_S = 60.0
_DESCRIBE_MEMORY_BYTES = 4 * 1024**3


class EngineUnusable(Exception):  # noqa: N818 - says what the engine is
    """An installed engine does not work; the message says why."""


async def serve_engine(
    engine: InstalledEngine, size: int, queue_length: int, on_replaced: Callable[[str], None]
) -> ServedEngine:
    """Start an engine's workers and ask it what it can do. Raises EngineUnusable."""
    pool = WorkerPool(
        engine.id,
        engine.interpreter,
        engine.name,
        size=size,
        queue_length=queue_length,
        on_replaced=on_replaced,
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
    engines: list[InstalledEngine], size: int, queue_length: int, on_replaced: Callable[[str], None]
) -> list[ServedEngine]:
    """Start all; leave out, with a line in the log, those that do not work."""
    outcomes = await asyncio.gather(
        *(serve_engine(engine, size, queue_length, on_replaced) for engine in engines),
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
