"""What a figure was measured on: without it, it says little."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import grpc


def describe() -> str:
    """Return CPU, system and versions in one line, with the load by others at the end."""
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} CPUs ({_cpu()}), {_system()}, CPython"
        f" {platform.python_version()}, grpcio {grpc.__version__}, load {load:.1f}"
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, without that of other processes."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int | str = "self") -> int:
    """Return how much memory a process has, without that of other processes."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
