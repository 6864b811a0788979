"""A job that cannot be set up is the daemon's fault, and another worker tries it."""

from __future__ import annotations

import itertools
import resource
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from wasmkilnd.engines.job import JobOrder
from wasmkilnd.engines.pool import Job, WorkerPool
from wasmkilnd.engines.process import JobNotSetUp, Worker
from wasmkilnd.errors import Fault, Reason, WasmkilnError

from tests.confinement import workers
from tests.confinement.workers import LIMITS, order
from tests.e2e import foreign

ORDER = order("find")


async def test_a_worker_whose_jobs_cannot_be_set_up_says_why(confined_engine: Path) -> None:
    """e2e/test_strict.py has each limit."""
    async with workers.running(confined_engine) as worker:
        await worker.run(JobOrder({"op": "nothing"}, LIMITS))
        foreign.spoil(worker.pid)
        words = "a job cannot be set up: .*RLIMIT_AS is 1,073,741,824 "
        with pytest.raises(JobNotSetUp, match=words):
            await worker.run(ORDER)
        assert worker.process.returncode is not None


async def test_a_worker_that_cannot_fork_says_so(confined_engine: Path) -> None:
    async with workers.running(confined_engine) as worker:
        foreign.spoil(worker.pid, resource.RLIMIT_NPROC, 1)
        with pytest.raises(JobNotSetUp, match="cannot fork a job"):
            await worker.run(ORDER)


def pool_with_spoiled(
    engine: Path, count: int, size: int = 1
) -> AbstractAsyncContextManager[WorkerPool]:
    """Run a pool of workers; lower a limit of the first ``count`` as soon as they have started."""
    left = itertools.count(count, -1)

    def spoil(worker: Worker) -> None:
        if next(left) > 0:  # To less than any job reserves.
            foreign.spoil(worker.pid, resource.RLIMIT_AS, 128 * 2**20)

    return workers.pool_of(engine, size, spoil)


@pytest.mark.parametrize("count", [1, 3])
async def test_the_job_is_done_by_another_worker(confined_engine: Path, count: int) -> None:
    """Also where all were spoiled while they were idle."""
    async with pool_with_spoiled(confined_engine, count, size=count) as pool:
        report = await pool.run(Job(ORDER))
        assert report.result
        assert report.result["outcome"] == "ok"


async def test_when_two_fail_the_daemon_is_blamed(confined_engine: Path) -> None:
    async with pool_with_spoiled(confined_engine, 2) as pool:
        with pytest.raises(WasmkilnError) as failure:
            await pool.run(Job(ORDER))
        assert failure.value.reason is Reason.WORKER_UNAVAILABLE
        assert failure.value.fault is Fault.NONE
        assert failure.value.retry_after_s
        report = await pool.run(Job(ORDER))
        assert report.result
