"""What must hold before any part of the daemon starts: memory, descriptors, a state directory.

Memory: all threads share one heap, and each block of a MiB and more has a mapping of its own, which
goes back to the machine when it is freed. The holes of the heap go back by ``trim_memory``, which
the daemon calls every five seconds.

Descriptors: jobs, Redis and the admin server have a fixed share. Connections to the gRPC port get
the rest, so that callers cannot take the others' share.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource

import structlog

from wasmkilnd.engines.child import sandbox
from wasmkilnd.files.ownership import make_folder, refuse_root
from wasmkilnd.lifecycle.running import take_back_private
from wasmkilnd.machine import cpu_count, memory_bytes
from wasmkilnd.settings import GRPC, Settings
from wasmkilnd.telemetry import admin

log = structlog.get_logger("wasmkilnd")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Larger blocks are mapped one by one, and go back to the machine when they are freed. Each page of
# them faults anew: what Redis returns of a value at once has more than a MiB.
_MAPPED_BYTES = 4 * 1024 * 1024
# So much may stay unused at the end of the heap until the next trim: with 4 MiB, each hit of a
# large artifact faults its buffers in again, which takes an eighth of its time.
_KEPT_BYTES = 64 * 1024 * 1024

# A worker needs so many while it starts and runs a job, both ends of its pipes included.
_WORKER = 8
# The connection pools of a cluster's six primaries: those of a larger one are not all busy at once.
_REDIS = 6 * 32
# Files, 64 uploads and as many large modules, listening sockets, what gRPC and threads use for
# themselves, and a reserve.
_OTHERS = 224
# Of a call to the object store at a time, and of a connection that it keeps.
_OBJECTS = 32
_LEAST_CONNECTIONS = 16
_MOST_DESCRIPTORS = 2**20


class CannotStart(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot start; the message says why and what to do."""


def configure_malloc() -> None:
    """Make glibc return large blocks as they are freed. Call this before threads start.

    By default glibc adapts to the first large block that is freed: from then on it keeps blocks
    of that size, and twice as much at the end of each thread's heap, which malloc_trim does not
    shorten. Requests of 16 MiB arrive in the heaps of gRPC's threads: 30 of them left 94 MiB
    behind. So all threads share one heap, whose end malloc_trim returns. This costs little: two
    threads hardly ever allocate at once, as most of what they do is Python.
    """
    with contextlib.suppress(AttributeError):  # Not glibc.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def trim_memory() -> None:
    """Return the holes of the heap to the machine: 0.1 ms for each MiB that goes."""
    with contextlib.suppress(AttributeError):  # Not glibc.
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def limits_too_low(settings: Settings) -> str:
    """Return why the limits of this process rule out any job; empty if they do not."""
    cpu_s = max(1, round(settings.effective_compile_cpu_s))
    most = max(settings.effective_compile_memory_bytes, settings.compile_memory_retry_bytes)
    why = sandbox.too_low(most, cpu_s, cpu_count())
    return why and f"cannot run jobs: {why}"


def check_host(settings: Settings) -> None:
    """Make the state directory. Raises CannotStart where this host or user rules a setting out."""
    if why := limits_too_low(settings):
        raise CannotStart(why)
    make_state_dir(settings)
    jobs, beside = settings.effective_compile_memory_total_bytes, settings.beside_jobs_bytes
    if jobs + beside > memory_bytes():
        advice = "lower compile_memory_total_bytes, memory_bytes, receive_bytes, or"
        advice += " embedded_redis_bytes; or give the daemon more memory"
        about = {"jobs": jobs, "all_else": beside, "memory": memory_bytes(), "advice": advice}
        log.warning("the daemon may use more memory than there is", **about)
    for folder, files in take_back_private(settings):
        log.warning("took the group's rights to private files", folder=str(folder), files=files)


def make_state_dir(settings: Settings) -> None:
    """Make the state directory, where it is not there. Raises CannotStart, and NotOurs."""
    try:
        refuse_root(settings.state_dir)
        make_folder(settings.state_dir)
    except OSError as failure:
        raise CannotStart(
            f"cannot make the state directory {settings.state_dir}: {failure.strerror};"
            " choose another with --state-dir or WASMKILN_STATE_DIR"
        ) from None


def connections_per_address(settings: Settings, engines: int) -> int:
    """Return how many connections each address of gRPC may have, with ``engines`` at work.

    Raise the soft limit of the process to the hard one. Where that is below what the daemon needs,
    the addresses get fewer connections than ``max_connections``, and the log says so.
    """
    listeners = sum(each.listeners for setting, each in settings.addresses if setting in GRPC)
    # There, each may send a file.
    listeners += 2 * len(settings.http_listen)
    others = engines * settings.effective_workers * _WORKER + admin.LIMIT + _REDIS + _OTHERS
    others += _OBJECTS if settings.object_store_url else 0
    needed = settings.max_connections * listeners + others
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed >= needed:
        return settings.max_connections
    connections = max(_LEAST_CONNECTIONS, (allowed - others) // listeners)
    numbers = {"allowed": allowed, "needed": needed, "max_connections": connections}
    advice = "raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower max_connections"
    log.warning("too few file descriptors", **numbers, advice=advice)
    return connections
