"""The CPUs, the memory and the disk that this process may use, control groups included.

Control groups are those of version 2. The limits of this process's group count, and of all above.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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
