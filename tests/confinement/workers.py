"""Real workers with the hostile engine, in virtual environments made for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wasmkilnd.engines.job import JobOrder, JobReport
from wasmkilnd.engines.memory import Memory
from wasmkilnd.engines.pool import WorkerPool
from wasmkilnd.engines.process import Worker, start_worker
from wasmkilnd.model import Limits, Reloadable
from wasmkilnd.telemetry.metrics import Metrics

from tests.contract.values import payload_of
from tests.e2e import hostile_engine
from tests.e2e.hostile_engine import module
from tests.e2e.processes import status_of

TRIPLE = "x86_64-unknown-linux-gnu"
LIMITS = Limits(
    module_bytes=1024,
    artifact_bytes=2**20,
    compile_timeout_s=60.0,
    compile_cpu_s=60.0,
    compile_memory_bytes=2**31,
    queue_length=1,
    queue_bytes=1024**2,
)
# Without any of these a job is what it was before there was isolation, but for its user.
EVERYTHING = ("namespaces", "landlock", "seccomp", "privileges", "limits", "descriptors")


@dataclass(frozen=True)
class Outcome:
    """How an attempt went."""

    report: JobReport

    @property
    def said(self) -> dict[str, Any]:
        """What the code in the job reported, if it could."""
        made = self.report.packed
        said: dict[str, Any] = json.loads(payload_of(made.frames)) if made is not None else {}
        return said

    @property
    def got(self) -> Any:
        """What the code got; None if it was refused."""
        if "executed" in self.report.last_words:
            return "executed"
        return self.said.get("got")

    @property
    def refused(self) -> str:
        """What refused it: an error's name, or SIGSYS; empty if nothing did."""
        if self.report.signal == 31:
            return "SIGSYS"
        return str(self.said.get("refused", ""))


def environment(folder: Path, left_out: Sequence[str] = (), python: str = "") -> Path:
    """Make an engine's environment with the hostile engine in it, and without some layers."""
    engine = hostile_engine.environment(folder, python=python)
    if left_out:
        here = str(Path(__file__).parent / "hostile")
        lines = ("import sys", f"sys.path.append({here!r})", "import left_out")
        hostile_engine.at_import(engine, *lines, f"left_out.leave_out(*{list(left_out)!r})")
    return engine


@asynccontextmanager
async def running(engine: Path) -> AsyncIterator[Worker]:
    """A worker in an environment, with a user of its own."""
    worker = await start_worker(engine / "bin" / "python", "wasmtime", 2)
    try:
        yield worker
    finally:
        await worker.kill()


async def attempt(
    worker: Worker,
    name: str,
    *arguments: object,
    **limits: Any,
) -> Outcome:
    """Have the code in a job try something."""
    return Outcome(await worker.run(order(name, *arguments, **limits)))


def order(
    name: str,
    *arguments: object,
    cpu_s: float = 20,
    timeout_s: float = 30,
    memory_bytes: int = LIMITS.compile_memory_bytes,
) -> JobOrder:
    """Return the order of a job whose code is to try something."""
    limits = replace(LIMITS, compile_timeout_s=timeout_s, compile_cpu_s=cpu_s)
    limits = replace(limits, compile_memory_bytes=memory_bytes)
    wishes = {"op": "compile", "kind": "core", "target": TRIPLE, "cpu": "native", "settings": {}}
    return JobOrder(wishes, limits, module(name, *arguments))


@asynccontextmanager
async def pool_of(
    engine: Path, size: int = 1, started: Callable[[Worker], None] = lambda _: None
) -> AsyncIterator[WorkerPool]:
    """A pool of workers in an environment; each is given to ``started`` once it has started."""

    async def start() -> Worker:
        worker = await start_worker(engine / "bin" / "python", "wasmtime", 2)
        started(worker)
        return worker

    limits, metrics = Reloadable(LIMITS), Metrics("test")
    pool = WorkerPool("wasmtime-0.0.1", start, size, limits, metrics, Memory(limits))
    await pool.start()
    while pool.alive < size:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def job_of(worker: Worker) -> AsyncIterator[int]:
    """A job that runs a module; yields its pid."""
    before = children_of(worker.pid)
    work = asyncio.create_task(attempt(worker, "burn_cpu", cpu_s=30, timeout_s=30))
    job: set[int] = set()
    try:
        async with asyncio.timeout(60):
            while not any(status_of(pid).get("Seccomp_filters") == "2" for pid in job):
                await asyncio.sleep(0.01)
                job = children_of(worker.pid) - before
        [pid] = job
        yield pid
    finally:
        for pid in job:
            os.killpg(pid, signal.SIGKILL)
        await asyncio.gather(work, return_exceptions=True)


def children_of(pid: int) -> set[int]:
    """Return the children of a process."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
