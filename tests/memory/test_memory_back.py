"""The most memory that a daemon takes is a sum of settings, and soon after use it is given back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import anonymous_memory_of, eventually
from tests.memory.watched import HELD
from tests.servers.redis_server import binary_of, redis_server

MIB = 1024 * 1024
SIZE = 20 * MIB
# Less is not worth a look; and Python grows a little at each first time.
SLACK = 28 * MIB
# Six seconds on a machine that is not busy (docs/how-to/size.md).
WITHIN_S = 30.0
CALLS = 18
LARGEST = 21 * MIB
"""The limit of a module and of an artifact, which is a little larger than its module."""
RECEIVE, QUEUE, SEND, PINNED = 96 * MIB, 48 * MIB, 24 * MIB, 96 * MIB
# docs/reference/limits.md has the sum.
MOST = (
    RECEIVE
    + 2 * LARGEST  # The request that is being parsed, in gRPC's copy and in ours.
    + 2 * QUEUE + LARGEST
    + 2 * 2 * LARGEST  # What two workers make.
    + SEND
    + 2 * PINNED
    + 32 * MIB  # What Python, gRPC and the allocator need for all that.
)  # fmt: skip
LIMITS = [
    *("--max-module-bytes", str(LARGEST), "--max-artifact-bytes", str(LARGEST)),
    *("--receive-bytes", str(RECEIVE), "--compile-timeout-s", "120"),
]
NO_TIERS = ("--memory-bytes", "0", "--host-store-bytes", "0", "--redis-url", "none")


@contextmanager
def gives_back(daemon: Daemon) -> Iterator[None]:
    """Fail unless the daemon's memory is what it was, soon after the context."""
    with Caller(daemon) as caller:
        outcome_of(caller.compile(wasm.with_data(MIB, 99), omit_artifact=False))
    before = anonymous_memory_of(daemon.pid)
    yield
    eventually(lambda: all(daemon.metric(name) == 0 for name in HELD), "something is held")
    used, deadline = anonymous_memory_of(daemon.pid), time.monotonic() + WITHIN_S
    while (after := anonymous_memory_of(daemon.pid)) - before > SLACK:
        sizes = " -> ".join(f"{size / MIB:.0f} MiB" for size in (before, used, after))
        assert time.monotonic() < deadline, sizes
        time.sleep(0.1)


@pytest.fixture(scope="module")
def keeps_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without tiers; each test compares its memory with what it was before the test."""
    state = state_with(tmp_path_factory.mktemp("keeps_nothing") / "state", ENGINE)
    with Daemon(state, [*LIMITS, *NO_TIERS, "--caller-timeout-s", "3"]) as daemon:
        yield daemon


def large_artifacts(caller: Caller) -> None:
    for tag in range(8):
        call = caller.compile(wasm.with_data(SIZE, tag), omit_artifact=tag % 2 == 0)
        assert outcome_of(call) is grpc.StatusCode.OK


def small_messages(caller: Caller) -> None:
    for tag in range(3):
        call = caller.compile(wasm.many_functions(100_000, tag), omit_artifact=False)
        assert outcome_of(call) is grpc.StatusCode.OK


def modules_that_are_loaded_or_refused(caller: Caller) -> None:
    for tag in range(8):
        module = wasm.with_data(SIZE, tag)
        caller.stub.Load(pb.LoadRequest(module=module, engine=ENGINE), timeout=60)
        bad = module + b"\x01"
        assert outcome_of(caller.compile(bad)) is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError):
            caller.stub.Load(pb.LoadRequest(module=bad, engine=ENGINE), timeout=60)


@pytest.mark.parametrize(
    "use", [large_artifacts, small_messages, modules_that_are_loaded_or_refused]
)
def test_what_nobody_keeps(keeps_nothing: Daemon, use: Callable[[Caller], None]) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        use(caller)


def test_callers_that_do_not_read(keeps_nothing: Daemon) -> None:
    with gives_back(keeps_nothing):
        callers = [Caller(keeps_nothing) for _ in range(8)]
        calls = [caller.compile(wasm.with_data(SIZE, 1), omit_artifact=False) for caller in callers]
        for call in calls:
            next(call)
        time.sleep(1)
        for caller in callers:
            caller.channel.close()


def fill(daemon: Daemon) -> None:
    """Have five large modules compiled."""
    with Caller(daemon) as caller, ThreadPoolExecutor(2) as threads:

        def compiled(tag: int) -> grpc.StatusCode:
            return outcome_of(caller.compile(wasm.with_data(SIZE, tag)))

        assert set(threads.map(compiled, range(5))) == {grpc.StatusCode.OK}


def test_an_eviction_and_a_memory_tier_that_shrinks(tmp_path: Path) -> None:
    config = tmp_path / "wasmkiln.toml"
    config.write_text('memory_bytes = "512MiB"\n')
    flags = [*LIMITS, "--redis-url", "none", "--config", str(config)]
    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon:
        with gives_back(daemon):
            fill(daemon)
            assert anonymous_memory_of(daemon.pid) > 200 * MIB
            with daemon.client() as client:
                client.evict(all=True)
        with gives_back(daemon):
            fill(daemon)
            assert anonymous_memory_of(daemon.pid) > 200 * MIB
            config.write_text('memory_bytes = "4MiB"\n')
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log('"event": "reloaded"')


def test_what_is_written_to_redis_and_read_from_there(tmp_path: Path) -> None:
    # As by default, more may wait to be written than these five.
    large = ("--max-module-bytes", "64MiB", "--compile-timeout-s", "120")
    flags = [*NO_TIERS[:4], *large, "--redis-timeout-s", "20"]
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as server,
        Daemon(
            state_with(tmp_path / "state", ENGINE), flags, {"WASMKILN_REDIS_URL": server.url}
        ) as daemon,
        gives_back(daemon),
    ):
        fill(daemon)
        eventually(lambda: daemon.metric("redis_pending_writes") == 0, "writes wait", 60)
        with Caller(daemon) as caller:
            for tag in range(5):
                call = caller.compile(wasm.digest(wasm.with_data(SIZE, tag)), omit_artifact=False)
                assert next(call).header.origin == 2
                assert outcome_of(call) is grpc.StatusCode.OK


def test_eighteen_large_artifacts_at_once(tmp_path: Path) -> None:
    def served(tag: int) -> None:
        """Get a module compiled, and try again as long as the daemon has no room."""
        with Caller(daemon) as caller:
            while True:
                call = caller.compile(wasm.with_data(SIZE, tag), omit_artifact=False)
                if outcome_of(call) is grpc.StatusCode.OK:
                    return
                _, reason, _, retry_s = failure_of(call)
                assert reason == "COMPILE_QUEUE_FULL", call.details()
                time.sleep(retry_s)

    flags = [*NO_TIERS, *LIMITS, "--workers", "2", "--caller-timeout-s", "60"]
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], anonymous_memory_of(daemon.pid))

    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon, gives_back(daemon):
        before = anonymous_memory_of(daemon.pid)
        with ThreadPoolExecutor(CALLS + 1) as threads:
            watching = threads.submit(watch)
            try:
                list(threads.map(served, range(CALLS)))
            finally:
                done.set()
            watching.result()
        print(f"{before / MIB:.0f} -> {most[0] / MIB:.0f} MiB of {(before + MOST) / MIB:.0f}")
        assert most[0] < before + MOST
