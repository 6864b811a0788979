"""The CPUs, the memory and the disk that this process may use, control groups included.

Control groups are those of version 2. The limits of this process's group count, and of all above.
Where a service manager lets it, it makes one for its jobs.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger("wasmkilnd")

_ROOT = Path("/")


def cpu_count(root: Path = _ROOT) -> int:
    """Return how many CPUs this process may keep busy, at least 1.

    The affinity mask and the quotas of control groups decide: 64 workers do not help a
    container that may use one CPU of 64. ``root`` holds /proc and /sys.
    """
    counts = [len(os.sched_getaffinity(0))]
    for text in _limits(root, "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            counts.append(math.ceil(int(quota) / int(period)))
    return max(1, min(counts))


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its group's limit."""
    total = re.search(r"^MemTotal: *([0-9]+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    limits = [int(total[1]) * 1024] if total else []
    limits += [int(text) for text in _limits(root, "memory.max") if text.isdecimal()]
    return min(
        filter(None, limits), default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    )


class JobsGroup:
    """A control group for jobs, beside the daemon's: it bounds their memory, and they never swap.

    It is made where the daemon's own group is named ``daemon``, which says that the one above was
    given to the daemon (systemd: ``Delegate=memory``, ``DelegateSubgroup=daemon``). Elsewhere, and
    where the kernel refuses, nothing is done: the log says so, and jobs have their own limits.
    """

    _folder: Path | None = None

    def open(self, memory_bytes: int, root: Path = _ROOT) -> None:
        """Make the group. ``root`` holds /proc and /sys."""
        own = re.search(r"^0::/(.+)/daemon$", _read(root / "proc/self/cgroup"), re.MULTILINE)
        if not own:
            log.debug("jobs have no control group: the daemon was not given one")
            return
        given = root / "sys/fs/cgroup" / own[1]
        self._folder = given / "jobs"
        try:
            self._write(given / "cgroup.subtree_control", "+memory")
            self._folder.mkdir(exist_ok=True)
            self._write(self._folder / "memory.swap.max", "0")
            self._write(self._folder / "memory.max", str(memory_bytes))
        except OSError as refusal:
            log.info("jobs have no control group", group=str(given), cause=str(refusal))
            self._folder = None
        else:
            log.info("jobs have a control group", group=str(self._folder), limit=memory_bytes)

    def limit(self, memory_bytes: int) -> None:
        """Change how much memory jobs have together."""
        self._tell("memory.max", memory_bytes)

    def enter(self, pid: int) -> None:
        """Move a worker there; what it starts follows."""
        self._tell("cgroup.procs", pid)

    def _tell(self, file: str, number: int) -> None:
        try:
            if self._folder:
                self._write(self._folder / file, str(number))
        except OSError as refusal:
            log.warning("cannot use the control group of jobs", file=file, cause=str(refusal))

    def _write(self, file: Path, text: str) -> None:
        with file.open("r+", encoding="ascii") as there:  # The kernel makes them.
            there.write(text)


def file_system_bytes(path: Path) -> int:
    """Return the size of the file system that ``path`` is on, or would be if it were made.

    Of the nearest folder above that tells; 0 if none does.
    """
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).total
    return 0


def _limits(root: Path, file: str) -> Iterator[str]:
    """Return the file's text in this process's group and in every group above it."""
    for group in re.findall(r"^0::(.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE):
        # Inside a container the path can be the host's, which does not exist here. The top of the
        # mount is then this process's group; it comes last.
        names = [name for name in group.split("/") if name not in ("", "..")]
        for depth in range(len(names), -1, -1):
            yield _read(root.joinpath("sys/fs/cgroup", *names[:depth], file)).strip()


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""
