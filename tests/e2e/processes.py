"""Find the processes that belong to a daemon, and whether they still run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# The CPU time of a job that is long past its settings.
_COMPILES_S = 0.3


def eventually(check: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait until ``check`` returns something true; ask less often the longer that takes."""
    began_s = time.monotonic()
    while not check():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, what
        time.sleep(min(0.1, max(0.02, waited_s / 20)))


def cpu_s_of(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 of one that is gone, or dead and not yet reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state == "Z" else int(parent)


def children_of(*parents: int) -> list[int]:
    """Return the children of processes."""
    return [
        child
        for parent in parents
        for thread in Path(f"/proc/{parent}").glob("task/*")
        for child in map(int, _text(thread / "children").split())
        if parent_of(child) == parent
    ]


def _text(file: Path) -> str:
    """Return a file of a process or thread; nothing of one that is gone."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def workers_of(daemon_pid: int) -> list[int]:
    """Return the workers of a daemon: what it runs with an engine's own Python."""
    return [
        pid
        for pid in children_of(daemon_pid)
        if b"/engines/" in _read(pid, "cmdline").partition(b"\0")[0]
    ]


def jobs_of(daemon_pid: int) -> list[int]:
    """Return the jobs of a daemon: those of its workers' children that lead a process group."""
    jobs = []
    for pid in children_of(*workers_of(daemon_pid)):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:
                jobs.append(pid)
    return jobs


def busy_job(daemon_pid: int) -> int:
    """Wait for a job that compiles, and return it.

    A job that is killed before it is set up runs once more, on another worker; one that is killed
    before the engine took its settings dies of those.
    """
    busy: list[int] = []

    def look() -> list[int]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            busy[:] = [job for job in jobs_of(daemon_pid) if cpu_s_of(job) > _COMPILES_S]
        return busy

    eventually(look, "no job compiles")
    return busy[0]


def kill_job(daemon_pid: int) -> None:
    """Wait for a job that compiles, and kill it; it runs again with more memory: kill it then, too.

    The kernel might have killed it for want of memory.
    """
    for _ in range(2):
        job = busy_job(daemon_pid)
        os.kill(job, signal.SIGKILL)
        eventually(partial(_is_gone, job), "a job that was killed lives on")


def _is_gone(pid: int) -> bool:
    return not parent_of(pid)


def stopped(pid: int) -> bool:
    """Stop a process; return whether it stands still, and did not end before."""
    send(signal.SIGSTOP, pid)
    deadline = time.monotonic() + 60
    while (state := state_of(pid)) not in ("", "Z", "T", "t"):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.002)
    return state in ("T", "t")


def state_of(pid: int) -> str:
    """Return the kernel's letter for what a process does; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process has resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


def anonymous_memory_of(pid: int) -> int:
    """Return the bytes of memory that a process has resident, files apart."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


def workers_and_jobs(daemon_pid: int) -> set[int]:
    """Return the workers of a daemon and all that they started, whoever their parent is now.

    They are known by their environment, which a fork inherits.
    """
    return _found("environ", f"WASMKILN_DAEMON_PID={daemon_pid}\0".encode())


def embedded(state_dir: Path) -> int:
    """Return the embedded server of a state directory; 0 if none runs."""
    folder = str(state_dir / "redis").encode()
    servers = (p for p in _found("cmdline", folder) if b"valkey-server" in _read(p, "cmdline"))
    return next(servers, 0)


def within(folder: Path) -> set[int]:
    """Return the processes that work in a folder, or were started with a path in it."""
    name = str(folder.resolve())
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = os.fsdecode(_read(int(entry.name), "cmdline"))
                if name in words or (entry / "cwd").readlink().is_relative_to(name):
                    found.add(int(entry.name))
    return found


def send(signal_number: signal.Signals, *pids: int) -> None:
    """Signal processes that may be gone already."""
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def _found(what: str, words: bytes) -> set[int]:
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and words in _read(int(entry.name), what)
    }


def _read(pid: int, what: str) -> bytes:
    """Return a file of a process; nothing of one that is gone, or dead and not yet reaped."""
    if not parent_of(pid):
        return b""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def status_of(pid: int) -> dict[str, str]:
    """Return the kernel's status of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
