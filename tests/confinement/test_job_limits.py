"""Limits that the worker's side keeps; e2e/test_hostile_jobs.py has those of the kernel."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from wasmkilnd.engines.child import sandbox
from wasmkilnd.engines.child.frames import HEADER, Type
from wasmkilnd.engines.process import Worker

from tests.confinement.workers import attempt, job_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def test_what_a_job_used_is_known_whatever_its_end(confined: Worker) -> None:
    size = 200 * 2**20
    filled = await attempt(confined, "fill_memory", size)
    assert size < filled.report.peak_memory_bytes < 2 * size
    assert filled.report.cpu_s < 10
    burnt = await attempt(confined, "burn_cpu", cpu_s=1, timeout_s=120)
    assert burnt.report.signal == signal.SIGXCPU
    assert not burnt.report.timed_out
    assert 0.5 < burnt.report.cpu_s < 2.5  # The kernel looks, and accounts, by its ticks.
    assert 0 < burnt.report.peak_memory_bytes < size


async def test_a_job_goes_behind_its_worker(confined: Worker) -> None:
    def class_of(pid: int) -> tuple[int, int]:
        return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)

    def slice_ns(pid: int) -> int:
        text = Path(f"/proc/{pid}/sched").read_text()
        return int(text.partition("se.slice ")[2].split()[1])

    ours = os.getpriority(os.PRIO_PROCESS, 0)
    async with job_of(confined) as job:
        assert class_of(job) == (os.SCHED_BATCH, sandbox.NICENESS)
        # Kernels from 6.12 on look at slices.
        if [int(each) for each in os.uname().release.split(".")[:2]] >= [6, 12]:
            assert slice_ns(job) > slice_ns(confined.pid)
    assert class_of(confined.pid) == (os.SCHED_OTHER, ours)
