"""A control group with a limit on memory, of whichever version this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# By the version: where groups are, the limit, the most that was used, and where a line tells how
# many processes were killed.
_VERSIONS = {
    "/sys/fs/cgroup/memory": (
        *("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    ),
    "/sys/fs/cgroup": ("memory.max", "memory.peak", "memory.events"),
}


@dataclass(frozen=True)
class ControlGroup:
    """A group that a test has made."""

    path: Path
    limit_file: str
    peak_file: str
    events_file: str

    @property
    def peak_bytes(self) -> int:
        """The most memory that its processes had together, with the files that they read."""
        return int((self.path / self.peak_file).read_text())

    @property
    def killed(self) -> int:
        """How many processes the kernel killed for want of memory."""
        lines = (self.path / self.events_file).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def enter(self, pid: int) -> None:
        """Move a process there."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def leave(self, pid: int) -> None:
        """Move a process to the group above."""
        (self.path.parent / "cgroup.procs").write_text(str(pid))


@contextmanager
def control_group(limit_bytes: int) -> Iterator[ControlGroup]:
    """Make a control group with a limit on memory; skip the test where none can be made."""
    for root, (limit, peak, events) in _VERSIONS.items():
        path = Path(root) / f"wasmkiln-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            if (path / limit).exists():
                (path / limit).write_text(str(limit_bytes))
                yield ControlGroup(path, limit, peak, events)
                return
        finally:
            path.rmdir()
    pytest.skip("no control group with a limit on memory can be made here")
