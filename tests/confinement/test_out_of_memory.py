"""When a control group is out of memory, the kernel kills the job and not a larger neighbour."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines.process import Worker

from tests.confinement.workers import attempt

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
LIMIT, NEIGHBOUR, JOB = 400 * MIB, 300 * MIB, 200 * MIB
# By the version of control groups: where they are, and which file has the limit.
VERSIONS = {
    "/sys/fs/cgroup/memory": "memory.limit_in_bytes",
    "/sys/fs/cgroup": "memory.max",
}
FILL = (
    f"memory = bytearray(b'x') * {NEIGHBOUR}; print('filled', flush=True);"
    " import time; time.sleep(120)"
)


@contextmanager
def control_group() -> Iterator[Path]:
    """A control group with a limit on memory."""
    for root, limit in VERSIONS.items():
        group = Path(root) / f"wasmkiln-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(LIMIT))
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no control group with a limit on memory can be made here")


@contextmanager
def neighbour_in(group: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has most of the group's memory, and more than the job will."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); "
    command = [sys.executable, "-c", enter + FILL]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"filled\n"
            yield process
        finally:
            process.kill()


async def test_the_job_goes_first(confined: Worker) -> None:
    with control_group() as group, neighbour_in(group) as neighbour:
        (group / "cgroup.procs").write_text(str(confined.pid))
        try:
            outcome = await attempt(confined, "fill_memory", JOB)
        finally:
            (group.parent / "cgroup.procs").write_text(str(confined.pid))
        assert outcome.report.signal == signal.SIGKILL
        assert neighbour.poll() is None
    assert (await attempt(confined, "find")).got
