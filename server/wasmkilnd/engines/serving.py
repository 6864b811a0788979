"""Bring an engine into service: start its workers, ask what it can do, and whether it works.

A job of the engine's own tries both (``child.describe``), under the limits of all jobs. An engine
that fails is not served, with the reason in the log, in GetCapabilities and on the banner; it does
not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import TypeAdapter

from wasmkilnd import model
from wasmkilnd.engines import isolation, process
from wasmkilnd.engines.child import sandbox
from wasmkilnd.engines.install import InstalledEngine
from wasmkilnd.engines.job import JobOrder
from wasmkilnd.engines.pool import Job, WorkerPool
from wasmkilnd.engines.process import Worker
from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.engines.verdict import cause_line
from wasmkilnd.files.threads import on_disk
from wasmkilnd.machine import cpu_count
from wasmkilnd.settings_loader import is_foreseen

# Limits of its own: an engine is not broken because the operator grants callers little.
_TRY_S, _TRY_BYTES = 60.0, 4 * 1024**3


class EngineUnusable(Exception):  # noqa: N818 - says what the engine is
    """An installed engine does not work; the message says why."""


async def serve_engine(
    engine: InstalledEngine, guard: isolation.IsolationGuard, new_pool: Callable[..., WorkerPool]
) -> ServedEngine | model.UnservedEngine:
    """Start an engine's workers, ask it what it can do, and test it."""

    async def start() -> Worker:
        worker = await process.start_worker(engine.interpreter, engine.name, cpu_count())
        try:
            pool.memory.group.enter(worker.pid)
            guard.admit(engine.id, worker.isolation)
            await worker.run(JobOrder({"op": "nothing"}, pool.limits.current))
        except BaseException:
            await worker.kill()
            raise
        return worker

    pool = new_pool(engine.id, start)
    try:
        # Before the first worker, which would run what it finds there as the daemon's user.
        await on_disk(engine.check)
        await pool.start()
        return ServedEngine(await _ask(pool, engine.id, pool.limits.current), pool, engine.is_there)
    except BaseException as failure:
        await pool.close()
        if isinstance(failure, Exception):
            return model.UnservedEngine(engine.id, _in_words(failure))
        raise


def _in_words(failure: Exception) -> str:
    if isinstance(failure, FileNotFoundError):
        return f"it is incomplete, without {failure.filename}: remove it, and install it again"
    if is_foreseen(failure) or isinstance(failure, OSError):
        return str(failure)
    # Capabilities that the daemon cannot read, for example.
    words = " ".join(str(failure).split())
    return f"it broke the job protocol ({type(failure).__name__}: {words:.300})"


async def _ask(pool: WorkerPool, engine_id: str, limits: model.Limits) -> model.EngineCapabilities:
    """Return what an engine can do. Raises EngineUnusable if it does not work."""
    memory_bytes, cpu_s = sandbox.reachable(_TRY_BYTES, _TRY_S)
    limits = replace(
        limits, compile_timeout_s=_TRY_S, compile_cpu_s=cpu_s, compile_memory_bytes=memory_bytes
    )
    report = await pool.run(Job(JobOrder({"op": "describe"}, limits)))
    if report.protocol_error or not report.result:
        words = report.protocol_error or cause_line(report.last_words)
        raise EngineUnusable(words or "it did not report its capabilities")
    told = report.result["capabilities"]
    found = TypeAdapter(model.EngineCapabilities).validate_python({**told, "identity": told})
    if found.identity.id != engine_id:
        raise EngineUnusable(f"it calls itself {found.identity.id}")
    if told["broken"]:
        raise EngineUnusable(f"the self-test failed: {told['broken']}")
    return found
