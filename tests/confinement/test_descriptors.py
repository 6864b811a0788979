"""A daemon that has no file descriptors left says so, and loses no worker over it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines import process
from wasmkilnd.engines.pool import Job, WorkerPool
from wasmkilnd.engines.process import Worker
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Reloadable
from wasmkilnd.telemetry.metrics import Metrics

from tests.confinement.workers import LIMITS, order

# A job's socket and the pipe for its last words, two ends each.
NEEDED = 4


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open ``count`` descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    fillers = []
    try:
        while True:
            try:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


def how_many_are_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_lack_of_descriptors_is_told_and_costs_no_worker(confined_engine: Path) -> None:
    python = confined_engine / "bin" / "python"
    started: list[Worker] = []

    async def start_worker() -> Worker:
        started.append(await process.start_worker(python, "wasmtime", 2))
        return started[-1]

    pool = WorkerPool(
        "wasmtime-0.0.1", start_worker, size=1, limits=Reloadable(LIMITS), metrics=Metrics("test")
    )
    await pool.start()
    try:
        for count in range(NEEDED):
            before = how_many_are_open()
            with descriptors_left(count), pytest.raises(WasmkilnError) as failure:
                await pool.run(Job(order("find")))
            assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
            assert failure.value.metadata["limit"] == "descriptors"
            assert failure.value.retry_after_s
            assert how_many_are_open() == before
            assert (pool.alive, pool.busy) == (1, 0)
        with descriptors_left(NEEDED):
            report = await pool.run(Job(order("find")))
        assert report.result
        assert report.result["outcome"] == "ok"
        assert len(started) == 1
    finally:
        await pool.close()
