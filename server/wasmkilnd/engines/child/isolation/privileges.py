"""Give up for good what a process may do beyond an ordinary user."""

from __future__ import annotations

import ctypes
import os
import struct

from . import kernel, syscalls

# To make namespaces, in the user namespace that this process is in.
MAKE_NAMESPACES = 1 << 21  # CAP_SYS_ADMIN

# From linux/capability.h: two sets of three words.
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_SETS_BYTES = 24


def become_ordinary(user: int) -> None:
    """Become ``user``, and the group of the same number, if this is root.

    Do nothing for other users. Raises OSError where there is no such user.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def drop_capabilities(machine: str, kept: int = 0) -> None:
    """Give up every capability, except ``kept``. Raises OSError."""
    syscalls.make("capset", machine, _capability_head(), _sets(kept))


def forbid_new_ones() -> None:
    """Let programs that are executed from now on gain no privilege. Raises OSError."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def leave_no_traces() -> None:
    """Write no core dump, and let no process of the same user read this one's memory.

    RLIMIT_CORE has no effect where /proc/sys/kernel/core_pattern names a program.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def has_capabilities(machine: str, but: int = 0) -> bool:
    """Return whether any capability except ``but`` is left. Raises OSError."""
    sets = ctypes.create_string_buffer(_CAPABILITY_SETS_BYTES)
    syscalls.make("capget", machine, _capability_head(), sets)
    return sets.raw != _sets(but)


def left_over(machine: str, but: int = 0) -> list[str]:
    """Return the names of what is left, except the capabilities ``but``. Raises OSError."""
    kept = {
        "capabilities": has_capabilities(machine, but),
        "new privileges": kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) != 1,
        "core dumps": kernel.prctl(kernel.PR_GET_DUMPABLE) != 0,
    }
    return [what for what, is_kept in kept.items() if is_kept]


def _sets(kept: int) -> bytes:
    """Encode capabilities below the 32nd: those in effect, those permitted, none inherited."""
    return struct.pack("=6I", kept, kept, 0, 0, 0, 0)


def _capability_head() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
