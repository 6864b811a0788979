"""What code that took over a job may try, and its targets."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from wasmkilnd.engines.workers.process import Worker


@dataclass
class Machine:
    """The targets: a daemon, which is this process, with its files and sockets."""

    folder: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    keys: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = self.folder / "signing.pem"
        key.write_text("the daemon's key")
        key.chmod(0o600)
        number = os.getpid() * 64
        self.keys = {
            "KEY": str(key),
            "NEW": str(self.folder / "new"),
            "NEW_FOLDER": f"/tmp/wasmkiln-test-folder-{os.getpid()}",
            "NEW_LINK": f"/tmp/wasmkiln-test-link-{os.getpid()}",
            "TMP": f"/tmp/wasmkiln-test-{os.getpid()}",
            "SHM": f"/dev/shm/wasmkiln-test-{os.getpid()}",
            "PYTHON": str(Path(sys.executable).resolve()),
            "TCP": self.tcp.getsockname()[1],
            "UDP": self.udp.getsockname()[1],
            "UNIX": self.unix.getsockname(),
            "ABSTRACT": self.abstract.getsockname()[1:].decode(),
            "NEW_ABSTRACT": f"wasmkiln-test-new-{os.getpid()}",
            "IPC": number,
            "QUEUE": f"wasmkiln-test-{os.getpid()}",
            "DAEMON": os.getpid(),
            "ENVIRON": f"/proc/{os.getpid()}/environ",
        }
        for name in ("AS", "CPU", "NOFILE", "NPROC", "FSIZE"):
            self.keys[f"HARD_{name}"] = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]

    def clean(self) -> None:
        """Remove what the controls made and the machine would keep."""
        for name in ("TMP", "SHM"):
            Path(str(self.keys[name])).unlink(missing_ok=True)
        libc = ctypes.CDLL(None)
        key = ctypes.c_int(int(str(self.keys["IPC"])))
        libc.shmctl(libc.shmget(key, 0, 0), 0, None)
        libc.semctl(libc.semget(key, 0, 0), 0, 0)

    def arguments(self, words: tuple[object, ...], worker: Worker, engine: Path) -> list[object]:
        """Return arguments with the words in capitals replaced."""
        table = {**self.keys, "WORKER": worker.pid, "ENGINE": str(engine / "engine.json")}
        return [table.get(word, word) if isinstance(word, str) else word for word in words]


# What code in a job may try. The words in capitals stand for what a Machine has.
ATTEMPTS: list[tuple[object, ...]] = [
    # the network
    ("connect_tcp", "TCP"),
    ("send_udp", "UDP"),
    ("connect_unix", "UNIX"),
    ("connect_abstract", "ABSTRACT"),
    ("listen",),
    ("listen_abstract", "NEW_ABSTRACT"),
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
    ("truncate_file", "NEW"),
    ("rename_file", "KEY"),
    ("make_folder", "NEW_FOLDER"),
    ("link_file", "NEW_LINK"),
    ("open_up_file", "KEY"),
    ("make_memory_file",),
    # other processes
    ("fork",),
    ("clone_process",),
    ("clone3_process",),
    ("execute", "PYTHON"),
    ("replace_itself", "PYTHON"),
    ("signal_process", "WORKER"),
    ("signal_process", "DAEMON"),
    ("signal_everybody",),
    ("signal_by_handle", "DAEMON"),
    ("signal_thread", "WORKER"),
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
    ("regain_capabilities",),
    ("new_user_namespace",),
    ("mount_files",),
    ("join_namespaces_of", "DAEMON"),
    ("change_root",),
    ("go_first",),
    ("compete",),
    # parts of the kernel that attackers like
    ("io_uring",),
    ("bpf",),
    ("userfaultfd",),
    ("perf_event_open",),
    ("keyrings",),
    ("add_key",),
    # memory that others see
    ("share_memory", "IPC"),
    ("find_shared_memory", "IPC"),
    ("make_semaphore", "IPC"),
    ("open_queue", "QUEUE"),
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
    *("regain_capabilities", "new_user_namespace", "mount_files", "join_namespaces_of"),
    *("change_root", "io_uring", "bpf", "userfaultfd", "perf_event_open", "keyrings", "add_key"),
    *("open_queue", "signal_by_handle", "exhaust_threads"),
}


def sentence(words: tuple[object, ...]) -> str:
    return "-".join(str(word) for word in words)
