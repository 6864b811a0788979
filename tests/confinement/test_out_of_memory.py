"""When a control group is out of memory, the kernel kills the job and not a larger neighbour."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
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
