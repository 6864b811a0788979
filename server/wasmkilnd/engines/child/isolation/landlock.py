"""Landlock: no file, no TCP, and, where the kernel is new enough, no signal or abstract socket.

The ruleset allows nothing at all. The engine has read what it needs before, so there is no list
of allowed paths that could be too long.
"""

from __future__ import annotations

import errno
import os
import struct

from . import kernel

# The same numbers on every machine.
_CREATE_RULESET = 444
_RESTRICT_SELF = 446
_VERSION_FLAG = 1

# ABI: how many rights on files it knows, from linux/landlock.h. Each later ABI adds to those
# before it.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_TCP_ABI, _SCOPES_ABI = 4, 6


def abi() -> int:
    """Return the version of the kernel's Landlock. Raises OSError where there is none."""
    return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def missing(abi: int) -> str:
    """Return what this version does not cover, in words; empty if it covers all."""
    gaps = []
    if abi < _TCP_ABI:
        gaps.append(f"TCP (ABI {_TCP_ABI}, Linux 6.7)")
    if abi < _SCOPES_ABI:
        gaps.append(f"signals and abstract sockets (ABI {_SCOPES_ABI}, Linux 6.12)")
    return " and ".join(gaps)


def why_none(failure: OSError) -> str:
    """Return why there is no Landlock, in words."""
    if failure.errno == errno.ENOSYS:
        return "the kernel has no Landlock (Linux 5.13)"
    if failure.errno == errno.EOPNOTSUPP:
        return "Landlock is switched off in this kernel (add it to lsm= on its command line)"
    return f"Landlock is refused: {os.strerror(failure.errno or 0)}"


def closed_ruleset(abi: int) -> int:
    """Return the descriptor of a ruleset that allows nothing. Raises OSError."""
    fields = [(1 << _FILE_RIGHTS.get(abi, max(_FILE_RIGHTS.values()))) - 1]
    if abi >= _TCP_ABI:
        fields.append(_TCP_BIND_AND_CONNECT)
    if abi >= _SCOPES_ABI:
        fields.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0)


def restrict(ruleset: int) -> None:
    """Put this process, and all that it starts, under ``ruleset`` for good. Raises OSError."""
    kernel.syscall(_RESTRICT_SELF, ruleset, 0)
