"""Make the system calls that the standard library has no function for."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39


def machine() -> str:
    """Return ``x86_64`` or ``aarch64``, whose call numbers are known; empty for others."""
    name = os.uname().machine
    is_64_bit = sys.maxsize > 2**32  # a 32-bit interpreter uses other numbers
    return name if name in ("x86_64", "aarch64") and is_64_bit else ""


def release() -> tuple[int, int]:
    """Return the kernel's version, e.g. (6, 12)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def syscall(number: int, *arguments: Any) -> int:
    """Make a system call. Integers are passed as 64 bits. Raises OSError."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *wide)))


def prctl(option: int, argument: int = 0) -> int:
    """Change or read an attribute of this process. Raises OSError."""
    zero = ctypes.c_ulong(0)
    return _checked(int(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero)))


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name for new ones. Raises OSError."""
    _checked(int(_libc.unshare(ctypes.c_int(flags))))


def mount(target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system without a source, or change how ``target`` is mounted. Raises OSError."""
    _checked(
        int(
            _libc.mount(
                b"none",
                target.encode(),
                kind.encode() or None,
                ctypes.c_ulong(flags),
                options.encode() or None,
            )
        )
    )


def unmount(target: str, flags: int) -> None:
    """Unmount. Raises OSError."""
    _checked(int(_libc.umount2(target.encode(), flags)))


def why_not(step: Callable[[], None]) -> str:
    """Take a step; return why it failed with an OSError, empty if it did not fail."""
    try:
        step()
    except OSError as failure:
        return failure.strerror or type(failure).__name__
    return ""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
