"""Which system calls a worker and a job may make, and their numbers.

The allowed calls were observed with ``strace``: every engine, compiling, validating, refusing,
panicking and running out of memory. The numbers are from the kernel's
``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h``.
"""

from __future__ import annotations

import errno
from typing import Any

from . import kernel

# name: (x86_64, aarch64)
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "add_key": (248, 217),
    "alarm": (37, None),
    "bind": (49, 200),
    "bpf": (321, 280),
    "brk": (12, 214),
    "capget": (125, 90),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "connect": (42, 203),
    "delete_module": (176, 106),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "execve": (59, 221),
    "execveat": (322, 281),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "finit_module": (313, 273),
    "fork": (57, None),
    "fsopen": (430, 430),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_restrict_self": (446, 446),
    "listen": (50, 201),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "memfd_create": (319, 279),
    "mmap": (9, 222),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "pause": (34, None),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pipe2": (293, 59),
    "pivot_root": (155, 41),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "read": (0, 63),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "request_key": (249, 218),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigqueueinfo": (129, 138),
    "rt_sigreturn": (15, 139),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_getaffinity": (204, 123),
    "sched_setscheduler": (144, 119),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "setitimer": (38, 103),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "shmget": (29, 194),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "sysinfo": (99, 179),
    "tgkill": (234, 131),
    "time": (201, None),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "uname": (63, 160),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "write": (1, 64),
}

# A job computes in threads, and sends its result on a socket that it has. It opens nothing.
JOB_MAY = (
    # memory; membarrier publishes new machine code on aarch64
    *("brk", "madvise", "membarrier", "mmap", "mprotect", "mremap", "munmap"),
    # threads
    *("exit", "exit_group", "futex", "getpid", "gettid", "rseq", "sched_getaffinity"),
    *("sched_yield", "set_robust_list"),
    # signals that it handles itself
    *("restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    # time, and what it used
    *("clock_getres", "clock_gettime", "clock_nanosleep", "getcpu", "getrandom", "getrusage"),
    *("gettimeofday", "nanosleep", "sysinfo", "time", "uname"),
    # the descriptors that it has
    *("close", "recvfrom", "write"),
)

# A worker does that, starts jobs, and waits for them. A job needs these calls to be confined, and
# an engine to have its capabilities found out.
WORKER_MAY = (
    *JOB_MAY,
    *(
        "alarm",
        "capget",
        "capset",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "getppid",
        "getsockname",
    ),
    *("getsockopt", "landlock_restrict_self", "pause", "pipe2", "ppoll", "prctl", "read"),
    *("recvmsg", "sched_setscheduler", "seccomp", "setitimer", "setpgid", "setpriority", "tgkill"),
    *("wait4", "waitid"),
)

# No compiler makes these calls by mistake: a job that does has been taken over.
JOB_DIES_OF = (
    # the network
    *("accept", "accept4", "bind", "connect", "listen", "socket", "socketpair"),
    # other programs and processes
    *("execve", "execveat", "fork", "kill", "pidfd_getfd", "pidfd_open", "pidfd_send_signal"),
    *("process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "rt_sigqueueinfo"),
    *("rt_tgsigqueueinfo", "tkill", "vfork"),
    # other privileges and namespaces
    *("capset", "chroot", "fsopen", "mount", "move_mount", "open_by_handle_at", "open_tree"),
    *("pivot_root", "setns", "umount2", "unshare"),
    # parts of the kernel that attackers use
    *("add_key", "bpf", "delete_module", "finit_module", "init_module", "io_uring_enter"),
    *("io_uring_register", "io_uring_setup", "kexec_file_load", "kexec_load", "keyctl"),
    *("perf_event_open", "request_key", "userfaultfd"),
)


def number(name: str, machine: str) -> int | None:
    """Return the number of a call on ``x86_64`` or ``aarch64``; None where there is none."""
    return NUMBERS[name][("x86_64", "aarch64").index(machine)]


def make(name: str, machine: str, *arguments: Any) -> int:
    """Make a call that glibc has no function for. Raises OSError."""
    found = number(name, machine) if machine else None
    if found is None:
        raise OSError(errno.ENOSYS, f"the number of {name} is not known on this machine")
    return kernel.syscall(found, *arguments)
