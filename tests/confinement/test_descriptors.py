"""A daemon that has no file descriptors left says so, and loses no worker over it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines.pool import Job
from wasmkilnd.engines.process import Worker
from wasmkilnd.errors import Reason, WasmkilnError

from tests.confinement.workers import order, pool_of

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
    started: list[Worker] = []
    async with pool_of(confined_engine, started=started.append) as pool:
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
