"""The most memory that a daemon takes is a sum of settings (docs/how-to/fleet.md)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import anonymous_memory_of, eventually
from tests.e2e.programs import Installed
from tests.memory.watched import HELD

MIB = 1024 * 1024
SIZE = 20 * MIB
CALLS = 18
WORKERS = 2
LARGEST = 21 * MIB
"""The limit of a module and of an artifact, which is a little larger than its module."""
RECEIVE, QUEUE, SEND, PINNED = 96 * MIB, 48 * MIB, 24 * MIB, 96 * MIB
MOST = (
    RECEIVE
    + 2 * LARGEST  # The request that is being parsed, in gRPC's copy and in ours.
    + 2 * QUEUE + LARGEST
    + WORKERS * 2 * LARGEST  # What is being made.
    + SEND
    + 2 * PINNED
    + 32 * MIB  # What Python, gRPC and the allocator need for all that.
)  # fmt: skip
FLAGS = [
    *("--memory-bytes", "0", "--host-store-bytes", "0", "--redis-url", "none"),
    *("--workers", str(WORKERS)),
    *("--max-module-bytes", str(LARGEST), "--max-artifact-bytes", str(LARGEST)),
    *("--receive-bytes", str(RECEIVE)),
    *("--compile-timeout-s", "120", "--caller-timeout-s", "60"),
]


@contextmanager
def most_of(daemon: Daemon) -> Iterator[list[int]]:
    """Record the most memory that the daemon takes meanwhile."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], anonymous_memory_of(daemon.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def test_eighteen_large_artifacts_at_once(engines: Installed, tmp_path: Path) -> None:
    def served(tag: int) -> None:
        """Get a module compiled, and try again as long as the daemon has no room."""
        module = wasm.with_data(SIZE, tag)
        with Caller(daemon) as caller:
            while True:
                call = caller.compile(module, omit_artifact=False)
                if outcome_of(call) is grpc.StatusCode.OK:
                    return
                _, reason, _, retry_s = failure_of(call)
                assert reason == "COMPILE_QUEUE_FULL", call.details()
                time.sleep(retry_s)

    with Daemon(state_with(tmp_path / "state", ENGINE), FLAGS) as daemon:
        before = anonymous_memory_of(daemon.pid)
        with most_of(daemon) as most, ThreadPoolExecutor(CALLS) as threads:
            list(threads.map(served, range(CALLS)))
        print(f"{before / MIB:.0f} -> {most[0] / MIB:.0f} MiB of {(before + MOST) / MIB:.0f}")
        assert most[0] < before + MOST
        eventually(lambda: all(daemon.metric(name) == 0 for name in HELD), "something is held")
        time.sleep(6)
        after = anonymous_memory_of(daemon.pid)
        print(f"6 s later {after / MIB:.0f} MiB")
        assert after - before < 28 * MIB
