"""When a control group is out of memory, the kernel kills the job and not a larger neighbour."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines.memory import JobsGroup
from wasmkilnd.engines.process import Worker

from tests.confinement.workers import attempt
from tests.e2e.control_groups import ControlGroup, control_group

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
LIMIT, NEIGHBOUR, JOB = 400 * MIB, 300 * MIB, 200 * MIB
FILL = (
    f"memory = bytearray(b'x') * {NEIGHBOUR}; print('filled', flush=True);"
    " import time; time.sleep(120)"
)


@contextmanager
def neighbour_in(group: ControlGroup) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has most of the group's memory, and more than the job will."""
    enter = f"open({str(group.path / 'cgroup.procs')!r}, 'w').write('0'); "
    command = [sys.executable, "-c", enter + FILL]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"filled\n"
            yield process
        finally:
            process.kill()


async def test_the_job_goes_first(confined: Worker) -> None:
    with control_group(LIMIT) as group, neighbour_in(group) as neighbour:
        group.enter(confined.pid)
        try:
            outcome = await attempt(confined, "fill_memory", JOB)
        finally:
            group.leave(confined.pid)
        assert outcome.report.signal == signal.SIGKILL
        assert neighbour.poll() is None
    assert (await attempt(confined, "find")).got


def given(group: ControlGroup, root: Path) -> JobsGroup:
    """Have the control group be that of jobs.

    What is not there stands for what systemd gives a unit with ``Delegate=memory``.
    """
    folder = root / "sys/fs/cgroup/kiln"
    (folder / "jobs").mkdir(parents=True)
    for name in ("cgroup.subtree_control", "jobs/memory.swap.max"):
        (folder / name).touch()
    for name, file in (("memory.max", group.limit_file), ("cgroup.procs", "cgroup.procs")):
        (folder / "jobs" / name).symlink_to(group.path / file)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/kiln/daemon\n")
    jobs = JobsGroup()
    jobs.open(LIMIT, root)
    return jobs


async def test_a_job_is_refused_more_than_all_jobs_may_have_before_the_kernel_kills_it(
    confined: Worker, tmp_path: Path
) -> None:
    with control_group(2 * LIMIT) as group:
        given(group, tmp_path).enter(confined.pid)
        try:
            outcome = await attempt(confined, "fill_all_memory", memory_bytes=LIMIT)
        finally:
            group.leave(confined.pid)
        assert outcome.got, outcome.report
        assert outcome.got * MIB > 0.98 * LIMIT
        assert group.peak_bytes > LIMIT
        assert group.killed == 0
