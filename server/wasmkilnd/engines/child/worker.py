"""A worker: a process with one engine imported that forks a job for each order.

It stays single-threaded, because only then is forking safe. It never sees a module: a job reads
its module from its own socket, so nothing of it is left in memory when the next caller's module
comes. The daemon gives one order at a time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

from . import cpu, frames, job
from .engine import Engine
from .engines import load
from .isolation import kernel, limits, probe
from .isolation.confinement import Confinement


def main(engine_name: str, control_fd: int) -> None:
    """Carry out the daemon's orders from ``control_fd`` until the daemon closes its end."""
    daemon = int(os.environ["WASMKILN_DAEMON_PID"])
    limits.die_with_parent(daemon)
    # Ctrl-C and service managers signal the whole group, but the daemon decides when workers end,
    # and lets jobs finish that callers wait for. A worker ends when its socket closes.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # The socket has the same number as in the daemon, where numbers grow with the callers. Jobs
    # close only the first few descriptors, so give it a low number.
    control = socket.socket(fileno=os.dup(control_fd))
    os.close(control_fd)
    engine = load(engine_name)
    machine = kernel.machine()
    threads = len(os.listdir("/proc/self/task"))
    cpu.host_features()  # Read and remember them now: a confined worker cannot open files.
    confinement = Confinement(
        int(os.environ["WASMKILN_JOB_UID"]), os.environ["WASMKILN_JOB_UID_SHARED_WITH"]
    )
    limits.die_with_parent(daemon)
    _send(
        control,
        frames.Type.READY,
        pid=os.getpid(),
        threads=threads,
        layers=confinement.report(),
        attempts=probe.try_all(confinement),
    )
    while True:
        try:
            wanted, fds = _next_order(control)
        except EOFError:
            return
        pid = _start_job(engine, confinement, wanted, fds, control)
        for fd in fds:
            os.close(fd)
        _send(control, frames.Type.STARTED, pid=pid)
        # Wait without reaping: while the daemon may still kill the job, no other process must
        # get its pid.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        by_signal = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED) if ended else False
        _send(
            control,
            frames.Type.ENDED,
            exit_code=None if by_signal else ended.si_status if ended else 0,
            signal=ended.si_status if by_signal and ended else None,
            **limits.used_by(pid, machine),
        )
        frames.receive(control)  # REAP
        os.waitpid(pid, 0)


def _next_order(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Wait for a RUN frame and the two descriptors that travel with it."""
    head, fds, _, _ = socket.recv_fds(control, frames.HEADER.size, 2)
    if not head:
        raise EOFError
    _, size = frames.parse_header(head)
    wanted: dict[str, Any] = json.loads(frames.receive_exactly(control, size))
    return wanted, fds


def _start_job(
    engine: Engine,
    confinement: Confinement,
    wanted: dict[str, Any],
    fds: list[int],
    control: socket.socket,
) -> int:
    worker = os.getpid()
    try:
        pid = os.fork()
    except OSError as failure:
        os.write(fds[1], f"cannot fork a job: {failure.strerror}\n".encode())
        raise
    if pid:
        _own_group(pid)
        return pid
    try:
        _own_group(0)
        limits.die_with_parent(worker)
        control.detach()  # enter_job closes the descriptor, with all that are not the job's.
        sock = socket.socket(fileno=confinement.enter_job(*fds))
        threads = int(os.environ["RAYON_NUM_THREADS"])
        limits.limit(wanted, confinement.mapped_bytes, threads)
        job.run(engine, sock, confinement, wanted["priority"])
        sock.close()
    except BaseException as failure:  # A panic derives from BaseException.
        os.write(2, f"{type(failure).__name__}: {failure}\n".encode(errors="replace"))
        os._exit(70)  # EX_SOFTWARE
    os._exit(0)


def _own_group(pid: int) -> None:
    """Make the job the leader of its group. Worker and job both do it, so that neither waits."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        if pid == 0:
            raise


def _send(control: socket.socket, kind: frames.Type, **payload: Any) -> None:
    frames.send(control, kind, json.dumps(payload).encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
