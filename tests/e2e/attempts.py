"""What code that took over a job may try, and its targets."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_IPC_CREATE = 0o1000


@dataclass
class Machine:
    """The targets: a daemon with its files, and sockets beside it."""

    folder: Path
    daemon: int
    """The process id."""
    key: Path
    """A file that is the daemon's alone."""
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    names: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tag = f"wasmkiln-test-{os.getpid()}-{self.folder.name}"
        # The kernel's own, which no other test has.
        number = self.folder.stat().st_ino % 2**31
        (self.folder / "new").write_text("a file that is there")
        self.names = {
            "KEY": str(self.key),
            "NEW": str(self.folder / "new"),
            "NEW_FOLDER": f"/tmp/{tag}-folder",
            "TMP": f"/tmp/{tag}",
            "SHM": f"/dev/shm/{tag}",
            "PYTHON": str(Path(sys.executable).resolve()),
            "TCP": self.tcp.getsockname()[1],
            "UDP": self.udp.getsockname()[1],
            "UNIX": self.unix.getsockname(),
            "ABSTRACT": self.abstract.getsockname()[1:].decode(),
            "IPC": number,
            "DAEMON": self.daemon,
            "ENVIRON": f"/proc/{self.daemon}/environ",
        }
        for name in ("AS", "CPU", "NOFILE", "NPROC", "FSIZE"):
            limit = getattr(resource, f"RLIMIT_{name}")
            self.names[f"HARD_{name}"] = resource.prlimit(self.daemon, limit)[1]
        # Memory that others may find, as long as they share the namespace.
        found = ctypes.CDLL(None).shmget(ctypes.c_int(number), 4096, _IPC_CREATE | 0o600)
        assert found >= 0, "no shared memory can be made here"

    def clean(self) -> None:
        """Remove what attempts made and the machine would keep."""
        for name in ("TMP", "SHM"):
            Path(str(self.names[name])).unlink(missing_ok=True)
        libc = ctypes.CDLL(None)
        key = ctypes.c_int(int(str(self.names["IPC"])))
        libc.shmctl(libc.shmget(key, 0, 0), 0, None)

    def arguments(self, words: tuple[object, ...], worker: object, engine: Path) -> list[object]:
        """Return arguments with the words in capitals replaced."""
        table = {**self.names, "WORKER": worker, "ENGINE": str(engine / "engine.json")}
        return [table.get(word, word) if isinstance(word, str) else word for word in words]


@contextmanager
def machine_of(folder: Path, daemon: int, key: Path) -> Iterator[Machine]:
    """The targets of attempts against a daemon; their files lie in ``folder``."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(folder / "socket"))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0wasmkiln-test-{os.getpid()}-{folder.name}")
        for listener in (unix, abstract):
            listener.listen()
        machine = Machine(folder, daemon, key, tcp, udp, unix, abstract)
        stack.callback(machine.clean)
        yield machine


# What code in a job may try. The words in capitals stand for what a Machine has.
ATTEMPTS: list[tuple[object, ...]] = [
    # the network
    ("connect_tcp", "TCP"),
    ("send_udp", "UDP"),
    ("connect_unix", "UNIX"),
    ("connect_abstract", "ABSTRACT"),
    ("listen",),
    ("talk_to_itself",),
    # files
    ("read_file", "KEY"),
    ("read_file", "/etc/passwd"),
    ("read_file", "ENVIRON"),
    ("read_file", "ENGINE"),
    ("read_file", "/proc/self/status"),
    ("list_folder", "/"),
    ("look_at_file", "KEY"),
    ("write_file", "NEW"),
    ("write_file", "TMP"),
    ("write_file", "SHM"),
    ("write_file", "ENGINE"),
    ("rename_file", "KEY"),
    ("make_folder", "NEW_FOLDER"),
    ("open_up_file", "KEY"),
    ("make_memory_file",),
    # other processes
    ("fork",),
    ("execute", "PYTHON"),
    ("replace_itself", "PYTHON"),
    ("signal_process", "WORKER"),
    ("signal_process", "DAEMON"),
    ("signal_everybody",),
    ("be_told_of_input", "DAEMON"),
    ("trace_process", "WORKER"),
    ("trace_process", "DAEMON"),
    ("read_memory_of", "WORKER"),
    ("write_memory_of", "WORKER"),
    ("write_memory_of", "DAEMON"),
    ("look_at_limits_of", "DAEMON"),
    ("join_group_of", "WORKER"),
    ("outlive_its_worker",),
    ("dump_core",),
    # privileges
    ("become_root",),
    ("new_user_namespace",),
    ("mount_files",),
    ("join_namespaces_of", "DAEMON"),
    ("change_root",),
    ("go_first",),
    ("compete",),
    # parts of the kernel that attackers like
    *(
        ("system_call", name)
        for name in (
            *("add_key", "bpf", "capset", "clone3", "io_uring_setup", "keyctl", "mq_open"),
            *("perf_event_open", "pidfd_open", "semget", "tgkill", "userfaultfd"),
        )
    ),
    # memory that others see
    ("share_memory", "IPC"),
    ("find_shared_memory", "IPC"),
    # limits
    ("raise_limit", "AS", "HARD_AS"),
    ("raise_limit", "CPU", "HARD_CPU"),
    ("raise_limit", "NOFILE", "HARD_NOFILE"),
    ("raise_limit", "NPROC", "HARD_NPROC"),
    ("raise_limit", "FSIZE", "HARD_FSIZE"),
    ("exhaust_descriptors", 200),
    ("exhaust_threads", 1000),
    ("lock_memory", 2**20),
]
# Some machines refuse these to everybody, or to everybody but root: kernels built without
# them, containers, system settings. There the control says nothing.
MACHINES_REFUSE = {
    *("trace_process", "read_memory_of", "write_memory_of", "become_root", "go_first"),
    *("new_user_namespace", "mount_files", "join_namespaces_of", "change_root", "system_call"),
    "exhaust_threads",
}
