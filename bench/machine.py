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
