"""Limit how long a process lives and what a job uses of the machine; read what it used."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any, NamedTuple

from . import kernel, syscalls

# The highest oom_score_adj: as if the process had all of the machine's memory.
_FIRST_TO_GO = 1000

# What getppid returns when the parent is outside of the process namespace.
_OUT_OF_SIGHT = 0
# A struct rusage is all longs: seconds and microseconds as a user and in the kernel, the most
# kibibytes resident, and more.
_USAGE_LONGS = 18
# The kernel's default, which compilers need because they recurse.
_STACK_BYTES = 8 * 1024 * 1024
# A worker's own, and the job's while it is set up.
_DESCRIPTORS = 16
# What a worker has mapped before it does anything, with room to spare.
_MAPPED_BYTES = 1024**3


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's main thread ends. Linux only.

    Call it again whenever the user changes: the kernel forgets the request then.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, _OUT_OF_SIGHT):
        os._exit(1)  # The parent ended before this request.


def be_killed_first() -> None:
    """Have a kernel that runs out of memory kill this process, and what it starts, before others.

    A compile can be repeated, while a daemon that is killed fails all of its calls.
    Raises OSError.
    """
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_FIRST_TO_GO))


def limit(wanted: dict[str, Any], mapped_bytes: int, threads: int) -> None:
    """Set the limits of a job whose engine starts ``threads`` threads.

    ``memory_bytes`` counts what the job maps beyond ``mapped_bytes``, what it has when it
    starts; ``cpu_s`` counts the time of all its threads. Raises LimitTooLow where the worker
    itself may not have as much.
    """
    memory, cpu = int(wanted["memory_bytes"]) + mapped_bytes, int(wanted["cpu_s"])
    if why := too_low(memory, cpu, threads):
        raise LimitTooLow(why)
    for need in _needs(memory, cpu, threads):
        soft, hard = resource.getrlimit(need.what)
        if 0 <= soft < need.amount:
            resource.setrlimit(need.what, (need.amount, hard))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # The hard limit a second later kills a process that does not die of SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))


class LimitTooLow(Exception):  # noqa: N818 - a state of the limit
    """A hard limit of the worker leaves a job less than it needs; the message says what to do."""


class _Need(NamedTuple):
    """How high a limit has to be for a job, and what an operator can change."""

    what: int
    name: str
    amount: int
    flag: str
    """The flag of the shell's ``ulimit``."""
    setting: str
    """The setting that the amount follows from; empty for none."""


def too_low(memory_bytes: int, cpu_s: int, threads: int) -> str:
    """Return which hard limits of this process leave its jobs too little, and what to do.

    Empty if none does. Processes that this one starts inherit the limits.
    """
    return "; ".join(
        f"{need.name} is {hard:,} and a job needs {need.amount:,}: raise the hard limit"
        f" (ulimit -H{need.flag}, or Limit{need.name[len('RLIMIT_') :]}= of a systemd unit)"
        + (f", or lower WASMKILN_{need.setting}" if need.setting else "")
        for need in _needs(memory_bytes, cpu_s, threads)
        if 0 <= (hard := resource.getrlimit(need.what)[1]) < need.amount
    )


def reachable(memory_bytes: int, cpu_s: float) -> tuple[int, float]:
    """Return both, lowered to what the hard limits of this process leave to a job."""
    for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(what)[1]
        if hard >= 0:
            memory_bytes = min(memory_bytes, max(hard - _MAPPED_BYTES, hard // 2))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    return memory_bytes, min(cpu_s, max(1, hard - 1)) if hard >= 0 else cpu_s


def _needs(memory_bytes: int, cpu_s: int, threads: int) -> tuple[_Need, ...]:
    # The worker, the holder of the process namespace and the job itself count too.
    processes = threads + 3
    return (
        _Need(resource.RLIMIT_AS, "RLIMIT_AS", memory_bytes, "v", "COMPILE_MEMORY_BYTES"),
        _Need(resource.RLIMIT_DATA, "RLIMIT_DATA", memory_bytes, "d", "COMPILE_MEMORY_BYTES"),
        _Need(resource.RLIMIT_CPU, "RLIMIT_CPU", cpu_s + 1, "t", "COMPILE_CPU_S"),
        _Need(resource.RLIMIT_STACK, "RLIMIT_STACK", _STACK_BYTES, "s", ""),
        _Need(resource.RLIMIT_NPROC, "RLIMIT_NPROC", processes, "u", ""),
        _Need(resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", _DESCRIPTORS, "n", ""),
    )


def used_by(pid: int, machine: str) -> dict[str, int]:
    """Return what a child that has ended and is not reaped used.

    ``cpu_ms`` is the time of all its threads, ``peak_memory_bytes`` its resident memory. Zeros
    where the kernel does not tell.
    """
    usage = (ctypes.c_long * _USAGE_LONGS)()
    try:
        # The standard library's waitid leaves the usage out, and its wait4 reaps.
        syscalls.make("waitid", machine, os.P_PID, pid, None, os.WEXITED | os.WNOWAIT, usage)
    except OSError:
        return {"cpu_ms": 0, "peak_memory_bytes": 0}
    user_s, user_us, kernel_s, kernel_us, peak_kib = usage[:5]
    cpu_ms = (user_s + kernel_s) * 1000 + (user_us + kernel_us) // 1000
    return {"cpu_ms": cpu_ms, "peak_memory_bytes": peak_kib * 1024}
