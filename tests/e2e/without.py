"""``python without.py CALL[:FLAGS] …``: a wasmkilnd on a machine that refuses a system call.

With FLAGS, only where its first argument has any of them.

The filter is this process's own, and so all that it starts is under it.
"""

import errno
import sys

from wasmkilnd.cli import main
from wasmkilnd.engines.child.isolation import kernel, privileges, seccomp, syscalls


def _refuse(what: str) -> None:
    call, _, flags = what.partition(":")
    machine = kernel.machine()
    number = syscalls.number(call, machine)
    assert number is not None
    program = [
        (seccomp._LOAD, 0, 0, seccomp._NUMBER),
        (seccomp._JUMP_EQUAL, 0, 3, number),
        (seccomp._LOAD, 0, 0, seccomp._low(0)),
        (
            seccomp._JUMP_ANY_BIT if flags else seccomp._JUMP_GREATER_EQUAL,
            0,
            1,
            int(flags or "0", 0),
        ),
        (seccomp._RETURN, 0, 0, seccomp._ERRNO | errno.EPERM),
        (seccomp._RETURN, 0, 0, seccomp._ALLOW),
    ]
    privileges.forbid_new_ones()
    seccomp.install(b"".join(seccomp._INSTRUCTION.pack(*each) for each in program), machine)


_refuse(sys.argv.pop(1))
main()
