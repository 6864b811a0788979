"""Start a worker process, and wait until its engine is imported and it is confined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from wasmkilnd.engines import child
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.workers.job_users import JobUser
from wasmkilnd.engines.workers.process import Worker, WorkerDied, describe_end, last_line
from wasmkilnd.model import Isolation, IsolationLayer, LayerState

_START_TIMEOUT_S = 30.0
# For a worker that closed its socket, to write why and to end.
_LAST_MOMENTS_S = 1.0
_BOOT = (
    "import sys; sys.path.append(sys.argv[3]);"
    " from child.job import main; main(sys.argv[1], int(sys.argv[2]))"
)


async def start_worker(interpreter: Path, engine: str, threads: int, user: JobUser) -> Worker:
    """Start a worker and wait until it is ready for its first job. Raises WorkerDied.

    Its engine compiles with at most ``threads`` threads, if it uses threads. The worker becomes
    ``user`` if the daemon is root.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    words = (engine, str(theirs.fileno()), str(Path(child.__path__[0]).parent))
    with theirs:
        process = await asyncio.create_subprocess_exec(
            str(interpreter),
            # -I: import nothing from the caller's environment or folder.
            *("-I", "-B", "-c", _BOOT, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            # All of it: nothing of the daemon's environment, which may hold secrets.
            env={
                "WASMKILN_DAEMON_PID": str(os.getpid()),
                "WASMKILN_JOB_UID": str(user.uid),
                "WASMKILN_JOB_UID_SHARED_WITH": user.shared_with,
                "LC_ALL": "C.UTF-8",
                # To count CPUs, wasmtime looks at files that a confined job does not have.
                "RAYON_NUM_THREADS": str(threads),
                "RUST_BACKTRACE": "0",  # Resolving a backtrace takes longer than many a compile.
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd="/",
        )
    worker = Worker(process, ours, process.pid)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            ready = await worker.frame(Type.READY)
        worker.isolation = Isolation(
            layers=tuple(
                IsolationLayer(str(each["name"]), LayerState(each["state"]), str(each["detail"]))
                for each in ready["layers"]
            ),
            attempts={str(each["name"]): each["refused"] is True for each in ready["attempts"]},
        )
    except (TimeoutError, WorkerDied, OSError, LookupError, TypeError, ValueError) as failure:
        why = await _cause_of_death(worker) or str(failure) or "it was not ready in time"
        raise WorkerDied(f"a {engine} worker did not start: {why}") from None
    except BaseException:
        await worker.kill()
        raise
    return worker


async def _cause_of_death(worker: Worker) -> str:
    """End a worker; return the last line that it wrote, or the signal that ended it.

    Empty where neither tells anything.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.wait(), _LAST_MOMENTS_S)
    code = worker.process.returncode
    await worker.kill()
    words = await worker.process.stderr.read() if worker.process.stderr else b""
    killed = "" if code is None or code >= 0 else describe_end(-code, None)
    return last_line(words.decode(errors="replace")) or killed
