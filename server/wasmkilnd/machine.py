"""The CPUs, the memory and the disk that this process may use, control groups included."""

from __future__ import annotations

import math
import os
from pathlib import Path

_ROOT = Path("/")


def cpu_count(root: Path = _ROOT) -> int:
    """Return how many CPUs this process may keep busy, at least 1.

    The affinity mask and the quotas of control groups decide: 64 workers do not help a
    container that may use one CPU of 64. ``root`` holds /proc and /sys.
    """
    count = len(os.sched_getaffinity(0))
    for quota, period in _cpu_quotas(root):
        if quota > 0 and period > 0:
            count = min(count, math.ceil(quota / period))
    return max(count, 1)


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its group's limit."""
    total = _physical_bytes(root)
    limits = [int(text) for text in _read_up(root, "memory", "memory.max") if text.isdecimal()]
    limits += [
        int(text) for text in _read_up(root, "memory", "memory.limit_in_bytes") if text.isdecimal()
    ]
    return min([total, *(limit for limit in limits if limit > 0)])


def file_system_bytes(path: Path) -> int:
    """Return the size of the file system that ``path`` is on, or would be if it were made.

    Of the nearest folder above that tells; 0 if none does.
    """
    for place in (path, *path.absolute().parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_blocks * found.f_frsize
    return 0


def _physical_bytes(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_quotas(root: Path) -> list[tuple[int, int]]:
    quotas = []
    for text in _read_up(root, "cpu", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            quotas.append((int(quota), int(period)))
    v1 = zip(
        _read_up(root, "cpu", "cpu.cfs_quota_us"),
        _read_up(root, "cpu", "cpu.cfs_period_us"),
        strict=False,
    )
    for quota, period in v1:
        if quota.isdecimal() and period.isdecimal():  # -1 is no quota
            quotas.append((int(quota), int(period)))
    return quotas


def _read_up(root: Path, controller: str, file: str) -> list[str]:
    """Return the file's text in this process's group and in every group above it."""
    texts = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:  # version 2: one tree for all
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path can be the host's, which does not exist here. The top of
        # the mount is then this process's group; the loop reads it last.
        names = [name for name in group.split("/") if name not in ("", "..")]
        for depth in range(len(names), -1, -1):
            text = _read(mount.joinpath(*names[:depth], file)).strip()
            if text:
                texts.append(text)
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
