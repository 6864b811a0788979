"""A worker, and the jobs that it forks.

A worker is a process with one engine imported. It stays single-threaded, because only then is
forking safe. It never sees a module: a job, which is a process for one order, reads its module
from its own socket, so nothing of it is left in memory when the next caller's module comes. The
daemon gives one order at a time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any

from . import cpu, frames, sandbox, section
from .describe import describe
from .engine import Engine, Extern, Refused, load, offset_in
from .sandbox import Sandbox

# The most imports and exports that a header holds: a hostile module has hundreds of thousands,
# and a client reads messages of at most 4 MiB. Bytes are counted as they are sent, so that a RESULT
# frame stays within its limit.
MAX_TYPES = 1_000
_MAX_TYPES_BYTES = 256 * 1024
# How much is kept at either end of an engine's message, which quotes names of the module. JSON
# needs at most six bytes for a character.
_MAX_MESSAGE_END = 4096


def main(engine_name: str, control_fd: int) -> None:
    """Carry out the daemon's orders from ``control_fd`` until the daemon closes its end."""
    daemon = int(os.environ["WASMKILN_DAEMON_PID"])
    sandbox.die_with_parent(daemon)
    # Ctrl-C and service managers signal the whole group, but the daemon decides when workers end,
    # and lets jobs finish that callers wait for. A worker ends when its socket closes.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # The socket has the same number as in the daemon, where numbers grow with the callers. Jobs
    # close only the first few descriptors, so give it a low number.
    control = socket.socket(fileno=os.dup(control_fd))
    os.close(control_fd)
    engine = load(engine_name)
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise SystemExit(f"it has {threads} threads: forking is unsafe")
    cpu.host_features()  # Read and remember them now: a confined worker cannot open files.
    confined = Sandbox(int(os.environ["WASMKILN_JOB_UID"]))
    sandbox.die_with_parent(daemon)
    attempts = confined.try_to_break_out()
    _send(control, frames.Type.READY, layers=confined.layers, attempts=attempts)
    while True:
        # A RUN frame, and the two descriptors that travel with it.
        head, fds, _, _ = socket.recv_fds(control, frames.HEADER.size, 2)
        if not head:
            return
        _, size = frames.parse_header(head)
        pid = _start_job(engine, confined, json.loads(frames.receive_exactly(control, size)), fds)
        for fd in fds:
            os.close(fd)
        _send(control, frames.Type.STARTED, pid=pid)
        # Wait without reaping: while the daemon may still kill the job, no other process must
        # get its pid.
        while not (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)):
            pass
        how = "exit_code" if ended.si_code == os.CLD_EXITED else "signal"
        _send(control, frames.Type.ENDED, **{how: ended.si_status}, **sandbox.used_by(pid))
        frames.receive(control)  # REAP
        os.waitpid(pid, 0)


def _start_job(engine: Engine, confined: Sandbox, wanted: dict[str, Any], fds: list[int]) -> int:
    worker = os.getpid()
    try:
        pid = os.fork()
    except OSError as failure:
        os.write(fds[1], f"cannot fork a job: {failure.strerror}\n".encode())
        raise
    if pid:
        os.setpgid(pid, pid)  # The daemon kills a job with its group.
        return pid
    try:
        sandbox.die_with_parent(worker)
        sock = socket.socket(fileno=confined.enter_job(*fds))
        threads = int(os.environ["RAYON_NUM_THREADS"])
        sandbox.limit(wanted, confined.mapped_bytes, threads)
        run(engine, sock, confined)
        sock.close()
    except BaseException as failure:  # A panic derives from BaseException.
        os.write(2, f"{type(failure).__name__}: {failure}\n".encode(errors="replace"))
        os._exit(70)  # EX_SOFTWARE
    os._exit(0)


def run(engine: Engine, sock: socket.socket, confined: Sandbox) -> None:
    """Read the order from ``sock``, carry it out, and send the result on ``sock``.

    The job is sealed before it reads a byte of a module.
    """
    order = json.loads(frames.receive(sock)[1])
    result: dict[str, Any]
    if order["op"] == "describe":
        frames.send(sock, frames.Type.SET_UP)
        result = {"outcome": "ok", "capabilities": describe(engine, confined)}
    else:
        sandbox.lower_priority()
        confined.seal()
        frames.send(sock, frames.Type.SET_UP)
        if order["op"] == "nothing":
            return
        _, wasm = frames.receive(sock, int(order["module_bytes"]))
        try:
            result = _carry_out(engine, sock, order, wasm)
        except Refused as refusal:
            message = str(refusal)
            result = {"outcome": refusal.outcome, "offset": offset_in(message)}
            if len(message) > 2 * _MAX_MESSAGE_END:
                message = f"{message[:_MAX_MESSAGE_END]} … {message[-_MAX_MESSAGE_END:]}"
            result["message"] = message
        except MemoryError:
            result = {"outcome": "out_of_memory"}
    frames.send(sock, frames.Type.RESULT, _json(result))


def _carry_out(
    engine: Engine, sock: socket.socket, order: dict[str, Any], wasm: bytearray
) -> dict[str, Any]:
    """Return the result of an order about one module. Raises Refused or MemoryError."""
    kind, started = order["kind"], time.perf_counter()
    configured = engine.configure(order["target"], order["cpu"], order["settings"])
    frames.send(sock, frames.Type.CONFIGURED)
    if order["op"] == "validate":
        engine.validate(configured, wasm, kind)
        return {"outcome": "ok", "seconds": time.perf_counter() - started}
    module = engine.compile_module(configured, wasm, kind)
    frames.send(sock, frames.Type.COMPILED)
    artifact = module.serialize()
    seconds = time.perf_counter() - started
    if len(artifact) > int(order["artifact_limit_bytes"]):
        return {"outcome": "too_large", "size_bytes": len(artifact)}
    frames.send(sock, frames.Type.ARTIFACT, artifact)
    key = section.key_of(artifact)
    # Last, because an engine may abort on types that it compiles but cannot name. The artifact
    # is complete by then.
    types = _types(*engine.externs(configured, module))
    return {"outcome": "ok", "seconds": seconds, "compatibility": key, **types}


def _types(imports: list[Extern], exports: list[Extern]) -> dict[str, Any]:
    kept: dict[str, list[Extern]] = {"imports": [], "exports": []}
    rows = [*(("imports", row) for row in imports), *(("exports", row) for row in exports)]
    budget = _MAX_TYPES_BYTES
    for name, row in rows[:MAX_TYPES]:
        budget -= len(_json(row)) + len(", ")
        if budget < 0:
            break
        kept[name].append(row)
    return {**kept, "types_truncated": sum(map(len, kept.values())) < len(rows)}


def _json(value: Any) -> bytes:
    # Most names are shorter than with escapes. Replace a lone surrogate, which no name contains.
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _send(control: socket.socket, kind: frames.Type, **payload: Any) -> None:
    frames.send(control, kind, json.dumps(payload).encode())
