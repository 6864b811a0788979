"""``python without.py CALL[:FLAGS] PROGRAM …``: a program on a machine that refuses a system call.

With FLAGS, only where its first argument has any of them.

The filter is this process's own; the program that takes its place and all that it starts are
under it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_X86_64, _AARCH64 = 0, 1
_MACHINES = {"x86_64": (_X86_64, 0xC000003E), "aarch64": (_AARCH64, 0xC00000B7)}
_NUMBERS = {
    "landlock_restrict_self": (446, 446),
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "unshare": (272, 97),
}
# Instructions of the kernel's packet filters, from linux/filter.h: where in seccomp_data they
# read, and what they say, from linux/seccomp.h.
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(call: str, flags: int = 0) -> None:
    """Have the kernel answer EPERM to a system call of this process and its children."""
    column, architecture = _MACHINES[os.uname().machine]
    test = (_ANY_BIT, flags) if flags else (_AT_LEAST, 0)
    instructions = (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 3, _NUMBERS[call][column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (test[0], 0, 1, test[1]),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    # A filter may be set by whoever can gain no privileges, and stays through execve.
    wide = ctypes.c_ulong
    for words in (
        (_PR_SET_NO_NEW_PRIVS, wide(1), wide(0)),
        (_PR_SET_SECCOMP, wide(_FILTER_MODE), ctypes.byref(program)),
    ):
        if libc.prctl(*words, wide(0), wide(0)):
            raise OSError(ctypes.get_errno(), "cannot set a filter for system calls")


if __name__ == "__main__":
    name, _, bits = sys.argv[1].partition(":")
    refuse(name, int(bits or "0", 0))
    os.execv(sys.argv[2], sys.argv[2:])
