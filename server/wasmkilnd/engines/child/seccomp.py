"""The system calls that a worker and a job may make, as programs that the kernel runs for each.

All calls that are not listed are refused with EPERM. The allowed ones were observed with
``strace``: every engine, compiling, validating, refusing, panicking and running out of memory. To
allow another one, add it to JOB_MAY, and say in the commit which engine needs it, observed how.
The numbers are from the kernel's ``arch/x86/entry/syscalls/syscall_64.tbl`` and
``include/uapi/asm-generic/unistd.h``. The programs are classic BPF: a comparison for each call,
followed by the action for it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable, Sequence

# With the numbers of the kernel's AUDIT_ARCH.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def _calls(*lines: str) -> dict[str, tuple[int, int]]:
    """Read entries of a name and its numbers on both machines; -1 stands for no such call."""
    entries = (entry.split() for line in lines for entry in line.split(","))
    return {name: (int(x86_64), int(aarch64)) for name, x86_64, aarch64 in entries}


# A job computes in threads, and sends its result on a socket that it has. It opens nothing.
JOB_MAY = _calls(
    # memory; membarrier publishes new machine code on aarch64
    "brk 12 214, madvise 28 233, membarrier 324 283, mmap 9 222, mprotect 10 226, mremap 25 216",
    "munmap 11 215",
    # threads
    "exit 60 93, exit_group 231 94, futex 202 98, getpid 39 172, gettid 186 178, rseq 334 293",
    "sched_getaffinity 204 123, sched_yield 24 124, set_robust_list 273 99",
    # signals that it handles itself
    "restart_syscall 219 128, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139",
    "sigaltstack 131 132",
    # time, and what it used
    "clock_getres 229 114, clock_gettime 228 113, clock_nanosleep 230 115, getcpu 309 168",
    "getrandom 318 278, getrusage 98 165, gettimeofday 96 169, nanosleep 35 101, sysinfo 99 179",
    "time 201 -1, uname 63 160",
    # the descriptors that it has
    "close 3 57, recvfrom 45 207, write 1 64",
)
# A worker does that, starts jobs, and waits for them. A job needs these calls to be confined, and
# an engine to have its capabilities found out.
WORKER_MAY = JOB_MAY | _calls(
    "alarm 37 -1, close_range 436 436, dup 32 23, dup2 33 -1, dup3 292 24, fcntl 72 25",
    "getppid 110 173, getsockname 51 204, getsockopt 55 209, pipe2 293 59",
    " ppoll 271 73, prctl 157 167, read 0 63, recvmsg 47 212, seccomp 317 277",
    "setitimer 38 103, setpgid 109 154, tgkill 234 131, wait4 61 260, waitid 247 95",
)
# No compiler makes these calls by mistake: a job that does has been taken over.
JOB_DIES_OF = _calls(
    # the network
    "accept 43 202, accept4 288 242, bind 49 200, connect 42 203, listen 50 201, socket 41 198",
    "socketpair 53 199",
    # other programs and processes
    "execve 59 221, execveat 322 281, fork 57 -1, kill 62 129, pidfd_getfd 438 438",
    "pidfd_open 434 434, pidfd_send_signal 424 424, process_madvise 440 440",
    "process_vm_readv 310 270, process_vm_writev 311 271, ptrace 101 117",
    "rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, tkill 200 130, vfork 58 -1",
    # other privileges and namespaces
    "capset 126 91, chroot 161 51, fsopen 430 430, mount 165 40, move_mount 429 429",
    "open_by_handle_at 304 265, open_tree 428 428, pivot_root 155 41, setns 308 268",
    "umount2 166 39, unshare 272 97",
    # parts of the kernel that attackers use
    "add_key 248 217, bpf 321 280, delete_module 176 106, finit_module 313 273",
    "init_module 175 105, io_uring_enter 426 426, io_uring_register 427 427",
    "io_uring_setup 425 425, kexec_file_load 320 294, kexec_load 246 104, keyctl 250 219",
    "perf_event_open 298 241, request_key 249 218, userfaultfd 323 282",
)
# Calls that a filter allows with some arguments only.
_CONDITIONAL = _calls(
    "clone 56 220, clone3 435 435, prlimit64 302 261, sendto 44 206",
    "sched_setattr 314 274, setpriority 141 140",
)
NUMBERS = {**WORKER_MAY, **JOB_DIES_OF, **_CONDITIONAL}

# Instructions, from linux/bpf_common.h, and where they find what they compare, in a struct
# seccomp_data.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Actions, from linux/seccomp.h.
_KILL, _ALLOW = (_RETURN, 0, 0, 0x80000000), (_RETURN, 0, 0, 0x7FFF0000)
_EPERM, _ENOSYS = ((_RETURN, 0, 0, 0x00050000 | number) for number in (errno.EPERM, errno.ENOSYS))
_X32_CALL = 0x40000000  # another set of numbers behind the same architecture

_CLONE_THREAD = 0x00010000
# What pthread_create asks for, in glibc and in musl; anything else makes another process.
_CLONE_OF_THREADS = 0x007D0F00
_CLONE_NEW_NAMESPACES = 0x7E020000
_PR_SET_NAME, _PR_SET_VMA = 15, 0x53564D41  # naming threads and memory

Instruction = tuple[int, int, int, int]


def machine() -> str:
    """Return ``x86_64`` or ``aarch64``, whose call numbers are known; empty for others."""
    name = os.uname().machine
    is_64_bit = sys.maxsize > 2**32  # a 32-bit interpreter uses other numbers
    return name if name in MACHINES and is_64_bit else ""


def number(name: str, machine: str) -> int:
    """Return the number of a call; -1 where there is none."""
    return NUMBERS[name][list(MACHINES).index(machine)]


def job_program(machine: str, pid: int) -> bytes:
    """Return the program for a job, which is the process ``pid``."""
    thread = ((_ANY_BIT, 0, 2, _CLONE_THREAD), (_ANY_BIT, 1, 0, 0xFFFFFFFF & ~_CLONE_OF_THREADS))
    naming = ((_EQUAL, 2, 0, _PR_SET_NAME), (_EQUAL, 1, 0, _PR_SET_VMA))
    special: dict[str, Sequence[Instruction]] = {
        "clone": (_load(0), *thread, _ALLOW, _KILL),
        "prctl": (_load(0), *naming, _EPERM, _ALLOW),
        # its own limits; reading only
        "prlimit64": (*_unless(0), *_unless(2), *_unless(2, offset=4), _ALLOW),
        # abort() signals the process itself
        "tgkill": (*_unless(0, pid, otherwise=_KILL), _ALLOW),
    }
    return _program(machine, JOB_MAY, {**dict.fromkeys(JOB_DIES_OF, (_KILL,)), **special})


def worker_program(machine: str) -> bytes:
    """Return the program for a worker, under which its jobs start."""
    special: dict[str, Sequence[Instruction]] = {
        "clone": (_load(0), (_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACES), _EPERM, _ALLOW),
        "prlimit64": (*_unless(0), _ALLOW),
        # A job lowers its own priority before it is sealed.
        "sched_setattr": (*_unless(0), _ALLOW),
        "setpriority": (*_unless(0), *_unless(1), _ALLOW),
    }
    return _program(machine, WORKER_MAY, special)


def _program(
    machine: str, allowed: Iterable[str], special: dict[str, Sequence[Instruction]]
) -> bytes:
    """Assemble a program; what is ``special`` ends in an action on every path."""
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, MACHINES[machine]), _KILL]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32_CALL), _KILL]
    calls: dict[str, Sequence[Instruction]] = {
        **dict.fromkeys(allowed, (_ALLOW,)),
        # No filter sees the flags of clone3, which lie in memory. Without clone3 the C library
        # makes threads with clone.
        "clone3": (_ENOSYS,),
        # Sockets are connected, and no call names an address.
        "sendto": (*_unless(4), *_unless(4, offset=4), _ALLOW),
        **special,
    }
    for name, body in calls.items():
        if (its_number := number(name, machine)) >= 0:
            code += [(_EQUAL, 0, len(body), its_number), *body]
    return b"".join(struct.pack("=HBBI", *each) for each in (*code, _EPERM))


def _load(argument: int, offset: int = 0) -> Instruction:
    """Load the low word of an argument; the high one is at 4: both machines are little endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + offset)


def _unless(
    argument: int, value: int = 0, offset: int = 0, otherwise: Instruction = _EPERM
) -> Sequence[Instruction]:
    """Refuse a call unless 32 bits of an argument are ``value``."""
    return [_load(argument, offset), (_EQUAL, 1, 0, value), otherwise]
