"""What code that took a job over would try. Each answers what it got, or raises.

Everything is imported now, and called by number where Python has no function for it: in
a job there is no file to import from. Harmless even where it succeeds.
"""

import _thread
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import socket
import stat
import struct
import threading
import time

X86 = os.uname().machine == "x86_64"
# name: x86_64, aarch64
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "mq_open": (240, 180),
    "mount": (165, 40),
    "perf_event_open": (298, 241),
    "pidfd_open": (434, 434),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "tgkill": (234, 131),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
remembered = {}
kept = []


def call(name, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    answer = libc.syscall(ctypes.c_long(NUMBERS[name][0 if X86 else 1]), *wide)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def prctl(option, argument):
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "set"


# The network


def connect_tcp(port):
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", port))
        return "connected"


def send_udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"secret", ("127.0.0.1", port))


def connect_unix(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        return "connected"


def connect_abstract(name):
    return connect_unix("\0" + name)


def listen():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.getsockname()[1]


def talk_to_itself():
    left, right = socket.socketpair()
    left.close()
    right.close()
    return "made"


# Files


def read_file(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(os.read(fd, 100))
    finally:
        os.close(fd)


def list_folder(path):
    names = os.listdir(path)
    if not names:
        raise OSError(2, "an empty folder")
    return len(names)


def look_at_file(path):
    return stat.filemode(os.stat(path).st_mode)


def write_file(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        return os.write(fd, b"left behind")
    finally:
        os.close(fd)


def rename_file(path):
    os.rename(path, path + ".renamed")
    os.rename(path + ".renamed", path)
    return "renamed"


def make_folder(path):
    os.mkdir(path)
    os.rmdir(path)
    return "made"


def open_up_file(path):
    os.chmod(path, 0o644)
    return "changed"


def make_memory_file():
    os.close(os.memfd_create("left-behind"))
    return "made"


# Other processes


def fork(_=None):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def execute(path):
    pid = os.posix_spawn(path, [path, "-I", "-S", "-c", ""], {})
    os.waitpid(pid, 0)
    return "executed"


def replace_itself(path):
    os.execv(path, [path, "-I", "-S", "-c", "import os; os.write(2, b'executed')"])


def signal_process(pid):
    os.kill(pid, 0)
    return "might have"


def signal_everybody():
    os.kill(-1, 0)
    return "might have"


def be_told_of_input(pid):
    # Then the kernel signals in this process's name.
    left, _right = os.pipe()
    fcntl.fcntl(left, fcntl.F_SETOWN, pid)
    return "set"


def trace_process(pid):
    call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE: does not stop it
    return "attached"


def read_memory_of(pid):
    here = ctypes.create_string_buffer(8)
    there = ctypes.addressof(here)  # the same place in a worker, which this was forked from
    local = ctypes.create_string_buffer(struct.pack("=QQ", there, 8), 16)
    remote = ctypes.create_string_buffer(struct.pack("=QQ", id(None), 8), 16)
    return call("process_vm_readv", pid, local, 1, remote, 1, 0)


def write_memory_of(pid):
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    os.close(fd)
    return "might have"


def join_group_of(pid):
    os.setpgid(0, os.getpgid(pid))
    return os.getpgrp()


def outlive_its_worker():
    return prctl(1, 0)


def dump_core():
    prctl(4, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    return "might have"


# Privileges


def become_root():
    os.setresuid(0, 0, 0)
    return os.geteuid()


def new_user_namespace():
    call("unshare", 0x10000000)
    return "made"


def mount_files():
    call("unshare", 0x00020000)
    call("mount", b"none", b"/proc", b"tmpfs", 0, None)
    return "mounted"


def join_namespaces_of(pid):
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    call("setns", fd, 0)
    return "joined"


def change_root():
    os.chroot("/proc")
    return "changed"


def go_first():
    os.nice(-1)
    return "raised"


def compete():
    """Leave the class of batch jobs, as an ordinary process may."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return "competes"


def system_call(name):
    """Call a part of the kernel with nothing in hand: to be let in is all that counts."""
    try:
        call(name, 0, 0, 0, 0, 0)
    except OSError as failure:
        if failure.errno in (errno.EPERM, errno.ENOSYS):
            raise
    return "let in"


# Memory that others see, and limits


def share_memory(key):
    return call("shmget", key, 4096, 0o1000 | 0o600)


def find_shared_memory(key):
    return call("shmget", key, 4096, 0)


def raise_limit(name, hard):
    """Go back to what the daemon has."""
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (hard, hard))
    return "raised"


def look_at_limits_of(pid):
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


def exhaust_descriptors(wanted):
    opened = []
    try:
        while len(opened) < wanted:
            opened.append(os.dup(2))
    finally:
        for fd in opened:
            os.close(fd)
    return len(opened)


def exhaust_threads(wanted):
    threading.stack_size(64 * 1024)
    done = threading.Event()
    living = []

    def live():
        living.append(True)
        done.wait()

    try:
        # Not Thread.start: it waits for ever for a thread that dies at once for want of memory.
        for _ in range(wanted):
            _thread.start_new_thread(live, ())
        until = time.monotonic() + 5
        while len(living) < wanted and time.monotonic() < until:
            done.wait(0.01)
    finally:
        done.set()
    if len(living) < wanted:
        raise MemoryError("threads die as they begin")
    return len(living)


def lock_memory(size):
    with mmap.mmap(-1, size) as memory:
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if libc.mlock(ctypes.c_void_p(place), ctypes.c_size_t(size)) < 0:
            raise OSError(ctypes.get_errno(), "mlock")
        return "locked"


def fill_memory(size):
    return len(bytearray(size))


def fill_all_memory():
    """Use all that there is; return how many MiB that were."""
    kept = []
    try:
        while True:
            kept.append(b"x" * 2**20)
    except MemoryError:
        return len(kept)


def burn_cpu():
    while True:
        pass


def use_cpu(seconds):
    """Do as an honest compiler does: it needs so much of a CPU, however long that takes."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return seconds


def flood(begin, piece):
    """Send the daemon ``begin`` and then ``piece`` without end, each in hexadecimal."""
    job_socket = 3
    os.write(job_socket, bytes.fromhex(begin))
    piece = bytes.fromhex(piece)
    while True:
        os.write(job_socket, piece)


def say(frames):
    """Send the daemon some frames, in hexadecimal, and end as if all were done."""
    os.write(3, bytes.fromhex(frames))
    os._exit(0)


def abort():
    os.abort()


# What the next job could find


def leave_behind(mark):
    os.environ["LEFT_BEHIND"] = mark
    remembered["left"] = mark
    time.left_behind = mark
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return "left"


def find():
    """Look for what leave_behind left."""
    return {
        "environment": os.environ.get("LEFT_BEHIND"),
        "module": remembered.get("left"),
        "standard library": getattr(time, "left_behind", None),
        "threads": threading.active_count(),
        "environ": dict(os.environ),
    }


def descriptors():
    found = []
    for fd in range(4096):
        try:
            os.write(fd, b"")
        except OSError as failure:
            if failure.errno == 9:
                continue
        found.append(fd)
    return found


BY_NAME = {name: thing for name, thing in globals().items() if callable(thing)}
