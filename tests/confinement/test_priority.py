"""Other processes go before jobs, and a job cannot change that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines.child import sandbox
from wasmkilnd.engines.process import Worker

from tests.confinement.workers import attempt, job_of, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CROWD = 2
_BUSY_LOOP = "import time\nuntil = time.monotonic() + 120\nwhile time.monotonic() < until: pass"
_OURS = os.getpriority(os.PRIO_PROCESS, 0)
_SLICES_COUNT = [int(each) for each in os.uname().release.split(".")[:2]] >= [6, 12]


def class_of(pid: int) -> tuple[int, int]:
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


def slice_ns(pid: int) -> int:
    [line] = re.findall(r"^se\.slice .*", Path(f"/proc/{pid}/sched").read_text(), re.MULTILINE)
    return int(line.split()[-1])


@contextmanager
def busy_cpu() -> Iterator[None]:
    """Let this process, its workers and busy loops share one CPU."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usual)[-1:])
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loops += [subprocess.Popen([sys.executable, "-c", _BUSY_LOOP]) for _ in range(_CROWD)]
        yield
    finally:
        os.sched_setaffinity(0, usual)
        for loop in loops:
            loop.kill()
            loop.wait()


async def test_a_job_goes_behind_its_worker(confined: Worker) -> None:
    async with job_of(confined) as job:
        assert class_of(job) == (os.SCHED_BATCH, sandbox.NICENESS)
        if _SLICES_COUNT:
            assert slice_ns(job) > slice_ns(confined.pid)
    assert class_of(confined.pid) == (os.SCHED_OTHER, _OURS)


@pytest.mark.parametrize("way", ["compete", "go_first"])
async def test_a_job_cannot_change_its_priority(confined: Worker, way: str) -> None:
    assert (await attempt(confined, way)).refused == "EPERM"


async def test_an_endless_job_ends_on_a_busy_machine_too(bare_engine: Path) -> None:
    with busy_cpu():
        async with running(bare_engine) as worker:
            outcome = await attempt(worker, "burn_cpu", timeout_s=0.5)
    assert outcome.report.timed_out
