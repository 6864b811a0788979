"""Log which system call a job was killed for, as far as the kernel's log tells.

The kernel gives a process's parent the signal only. It writes the number of the call to its
log, which root may read where no audit daemon takes the records away.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import structlog

from wasmkilnd.engines.child.isolation import kernel, syscalls

log = structlog.get_logger("wasmkilnd.engines")

_LOG = "/dev/kmsg"
_RECORD_BYTES = 8192
# The kernel writes a record a moment after the kill, and drops some of a crowd of them.
_LOOKS, _LOOK_EVERY_S = 5, 0.01
# Records give pids of the first process namespace, whose number never changes.
_FIRST_NAMESPACE = "pid:[4026531836]"
_SECCOMP_RECORD = re.compile(rb"type=1326 .* pid=(\d+) .* sig=31 .* syscall=(\d+) ")


def log_refused_call(engine_id: str, module_sha256: str, pid: int) -> None:
    """Log that the seccomp filter killed a job. Blocks for up to 50 ms."""
    log.error(
        "a job was killed for a system call that no compiler makes",
        engine=engine_id,
        module=module_sha256,
        pid=pid,
        call=refused_call(pid) or "unknown",
    )


def refused_call(pid: int) -> str:
    """Return the name or number of the call that ``pid`` was killed for; empty if not known.

    Blocks for up to 50 ms. ``pid`` is of the first process namespace.
    """
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != _FIRST_NAMESPACE:
            return ""
        log = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        for _ in range(_LOOKS):
            if (number := _last_call_of(pid, log)) is not None:
                return _name_of(number)
            time.sleep(_LOOK_EVERY_S)
        return ""
    finally:
        os.close(log)


def _last_call_of(pid: int, log: int) -> int | None:
    found = None
    while True:
        try:
            record = os.read(log, _RECORD_BYTES)
        except BrokenPipeError:
            continue  # The kernel overwrote records before this process read them.
        except OSError:
            return found  # no more records
        match = _SECCOMP_RECORD.search(record)
        if match and int(match[1]) == pid:
            found = int(match[2])


def _name_of(number: int) -> str:
    machine = kernel.machine()
    names = {syscalls.number(name, machine): name for name in syscalls.NUMBERS} if machine else {}
    return names.get(number, str(number))
