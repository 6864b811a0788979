"""Namespaces: an empty network, an empty folder as root, and no other processes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from dataclasses import dataclass

from . import kernel, privileges, syscalls

_NEW_USER = 0x10000000
_NEW_PROCESSES = 0x20000000
# mounts, network, System V and POSIX message queues
_NEW_REST = 0x00020000 | 0x40000000 | 0x08000000
# the host's name, control groups: some service managers allow only the others
_NEW_NAMES = 0x04000000 | 0x02000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 2

# A folder that exists on every Linux; the new root is mounted over it.
_MOUNT_POINT = "/proc"


@dataclass
class Entered:
    """How far this process got: for each part why it failed, empty if it did not."""

    namespaces: str = ""
    root: str = ""
    """An empty root folder."""
    user: str = ""
    """A user namespace of its own."""
    ordinary: str = ""
    """Another user than root."""
    names: str = ""
    """Namespaces of its own for the host's name and for control groups."""
    job_flags: int = 0
    """What a job unshares: see :func:`leave_workers`. No process namespace, whose first process
    it would be."""


def enter(machine: str, user: int) -> Entered:
    """Leave the machine's network, files and processes; become ``user`` if this is root.

    Root makes the namespaces before it stops being root, because some systems forbid that to
    ordinary users. Any other user makes a user namespace first, in which it may make the others.
    Only children of this process are in the new process namespace: see :func:`hold_processes`.
    """
    entered = Entered()
    by_root = os.geteuid() == 0 and not kernel.why_not(lambda: _unshare(entered, 0))
    if by_root:
        entered.root = kernel.why_not(lambda: _empty_root(machine))
    entered.ordinary = kernel.why_not(lambda: privileges.become_ordinary(user))
    if by_root:
        entered.user = kernel.why_not(lambda: kernel.unshare(_NEW_USER))
    else:
        own = os.geteuid(), os.getegid()
        entered.namespaces = entered.user = kernel.why_not(lambda: _unshare(entered, _NEW_USER))
        entered.root = entered.namespaces
        if not entered.namespaces:
            unmapped = kernel.why_not(lambda: _map_user(*own))
            failed = kernel.why_not(lambda: _empty_root(machine))
            entered.root = failed and (unmapped or failed)  # The first cause.
    if not entered.user:
        # It takes a capability in a user namespace of its own, which is worth nothing outside.
        entered.job_flags = _NEW_REST if entered.names else _NEW_REST | _NEW_NAMES
    return entered


def _unshare(entered: Entered, user: int) -> None:
    flags = user | _NEW_REST | _NEW_PROCESSES
    entered.names = kernel.why_not(lambda: kernel.unshare(flags | _NEW_NAMES))
    if entered.names:
        kernel.unshare(flags)


def leave_workers(entered: Entered, machine: str) -> None:
    """Move this process, a job, to new namespaces, and drop its capabilities. Raises OSError."""
    if entered.job_flags:
        kernel.unshare(entered.job_flags)
        privileges.drop_capabilities(machine)


def try_as_job(entered: Entered, machine: str) -> None:
    """Try ``leave_workers`` in a process of its own. Raises OSError if a job would fail."""
    pid = os.fork()
    if pid == 0:
        failed = errno.EPERM
        try:
            leave_workers(entered, machine)
            failed = errno.EPERM if privileges.has_capabilities(machine) else 0
        except OSError as failure:
            failed = failure.errno or failed
        finally:
            os._exit(failed)
    _, status = os.waitpid(pid, 0)
    if status:
        number = os.WEXITSTATUS(status) or errno.EPERM
        raise OSError(number, os.strerror(number))


def _map_user(user: int, group: int) -> None:
    """Map this user and group to the same ones in the new namespace."""
    # Once the user has changed, the files under /proc/self belong to root unless dumpable.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _empty_root(machine: str) -> None:
    kernel.mount("/", "", _MS_REC | _MS_PRIVATE)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    kernel.mount(_MOUNT_POINT, "tmpfs", flags, "size=4k,nr_inodes=2,mode=555")
    os.chdir(_MOUNT_POINT)
    # Stack the old root on the new one, and then unmount it.
    syscalls.make("pivot_root", machine, b".", b".")
    kernel.unmount(".", _MNT_DETACH)
    os.chdir("/")


def use_loopback() -> None:
    """Find a route to this machine itself. Raises OSError if there is no network."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))  # Sends nothing.


def hold_processes() -> None:
    """Start the first process of the new namespace, which does nothing but exist.

    Without it the first job would be the first process, and signals that the first process of a
    namespace sends to itself have no effect. When it ends, the kernel kills all others.
    Raises OSError.
    """
    worker_reads, holder_writes = os.pipe()
    if os.fork() == 0:
        _hold(holder_writes)
    os.close(holder_writes)
    stays = os.read(worker_reads, 1)
    os.close(worker_reads)
    if not stays:
        raise OSError("the holder of the process namespace did not start")


def _hold(holder_writes: int) -> None:
    try:
        kernel.why_not(lambda: privileges.drop_capabilities(kernel.machine()))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Orphans leave no zombies.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.write(holder_writes, b"1")  # Fails if the worker is gone already.
        os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        while True:
            signal.pause()
    finally:
        os._exit(1)
