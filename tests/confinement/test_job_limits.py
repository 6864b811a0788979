"""Limits hold, and honest work fits within them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from wasmkilnd.engines.child.frames import HEADER, Type
from wasmkilnd.engines.process import Worker

from tests.confinement.workers import attempt, job_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_memory_above_the_limit_is_not_to_be_had(confined: Worker) -> None:
    size = 200 * 2**20
    assert (await attempt(confined, "fill_memory", size, memory_bytes=2 * size)).got == size
    outcome = await attempt(confined, "fill_memory", size, memory_bytes=size // 2)
    assert outcome.got is None
    assert outcome.report.exit_code == 0  # Told by MemoryError.


async def test_cpu_time_runs_out(confined: Worker) -> None:
    outcome = await attempt(confined, "burn_cpu", cpu_s=1, timeout_s=120)
    assert outcome.report.signal == signal.SIGXCPU
    assert not outcome.report.timed_out


async def test_threads_for_every_cpu_start(confined: Worker) -> None:
    assert (await attempt(confined, "exhaust_threads", 128)).got == 128


async def test_an_abort_is_an_abort(confined: Worker) -> None:
    """A job signals itself: the first process of a namespace could not."""
    assert (await attempt(confined, "abort")).report.signal == signal.SIGABRT


async def test_a_job_that_hangs_is_killed(confined: Worker) -> None:
    outcome = await attempt(confined, "burn_cpu", timeout_s=0.5)
    assert outcome.report.timed_out
    assert outcome.report.signal == signal.SIGKILL
    assert (await attempt(confined, "find")).got


async def test_a_job_that_floods_the_daemon_with_frames_is_killed(confined: Worker) -> None:
    frame = HEADER.pack(Type.CONFIGURED, 0)
    outcome = await attempt(confined, "flood", frame.hex(), (frame * 1000).hex())
    assert outcome.report.protocol_error == "unexpected CONFIGURED frame"
    assert outcome.report.signal == signal.SIGKILL
    assert (await attempt(confined, "find")).got


async def test_a_job_that_floods_the_daemon_within_one_frame_is_killed(confined: Worker) -> None:
    head = HEADER.pack(Type.ARTIFACT, 2**20)
    outcome = await attempt(confined, "flood", head.hex(), "00", timeout_s=0.2)
    assert outcome.report.timed_out
    assert outcome.report.packed is None
    assert (await attempt(confined, "find")).got


async def test_a_kernel_without_memory_kills_jobs_before_anybody_else(confined: Worker) -> None:
    def score_adj(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    async with job_of(confined) as job:
        assert score_adj(job) == score_adj(confined.pid) == 1000
    assert score_adj(os.getpid()) < 1000


async def test_what_a_job_used_is_known_whatever_its_end(confined: Worker) -> None:
    size = 200 * 2**20
    filled = await attempt(confined, "fill_memory", size)
    assert size < filled.report.peak_memory_bytes < 2 * size
    assert filled.report.cpu_s < 10
    burnt = await attempt(confined, "burn_cpu", cpu_s=1, timeout_s=120)
    assert 0.5 < burnt.report.cpu_s < 2.5  # The kernel looks, and accounts, by its ticks.
    assert 0 < burnt.report.peak_memory_bytes < size
