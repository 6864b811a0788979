"""The most memory that a daemon takes is a sum of settings, and soon after use it is given back.

However a call ends: by reference counts alone, for no garbage collector runs here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.callers import (
    COMPILE,
    ENGINE,
    Caller,
    RawCaller,
    failure_of,
    held_worker,
    outcome_of,
)
from tests.e2e.daemon import Daemon, fresh_state, state_with
from tests.e2e.fixtures import a_valkey, serving
from tests.e2e.processes import anonymous_memory_of, busy_job, eventually, parent_of, stopped
from tests.e2e.programs import inside
from tests.servers.redis_server import RedisServer

MIB = 1024 * 1024
SIZE = 20 * MIB
# Less is not worth a look; and Python grows a little at each first time.
SLACK = 28 * MIB
WITHIN_S = 6.0
HELD = ("calls", "flights", "send_bytes", "send_pinned_bytes", "receive_bytes")
NO_COLLECTOR = inside("tests.memory.collector_off")
CALLS = 18
LARGEST = 21 * MIB
"""The limit of a module and of an artifact, which is a little larger than its module."""
RECEIVE, QUEUE, SEND, PINNED = 96 * MIB, 48 * MIB, 24 * MIB, 96 * MIB
# docs/how-to/fleet.md has the sum.
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
    """Fail unless the daemon's memory is what it was, six seconds after the context."""
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


keeps_nothing = serving(
    ENGINE,
    flags=[
        *(*LIMITS, *NO_TIERS, "--caller-timeout-s", "3", "--queue-length", "8"),
        *("--quarantine-s", "0"),
    ],
    command=NO_COLLECTOR,
)
"""A daemon without tiers; each test compares its memory with what it was before the test."""


def large(tag: int) -> bytes:
    return wasm.with_data(SIZE, tag)


def slow(tag: int) -> bytes:
    """A module that is large, and takes seconds to compile."""
    padding = wasm.section(0, b"\1x" + bytes(SIZE - MIB))
    return wasm.many_functions(150_000, tag=tag) + padding


def large_artifacts(_: Daemon, caller: Caller) -> None:
    for tag in range(8):
        call = caller.compile(large(tag), omit_artifact=tag % 2 == 0)
        assert outcome_of(call) is grpc.StatusCode.OK


def small_messages(_: Daemon, caller: Caller) -> None:
    for tag in range(3):
        call = caller.compile(wasm.many_functions(100_000, tag), omit_artifact=False)
        assert outcome_of(call) is grpc.StatusCode.OK


REFUSED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "MODULE_INVALID": (b"\x01", {}),
    "ENGINE_UNKNOWN": (b"", {"engine": "v8"}),
    "TARGET_UNSUPPORTED": (b"", {"target": "pdp11"}),
    "SETTING_UNKNOWN": (b"", {"settings": {"speed": "very"}}),
    "MODULE_TOO_LARGE": (b"\0" * MIB, {}),
}
"""What is behind a large module, and what is asked of it."""


def modules_that_are_loaded_or_refused(_: Daemon, caller: Caller) -> None:
    for tag in range(2):
        module = large(tag)
        caller.stub.Load(pb.LoadRequest(module=module, engine=ENGINE), timeout=60)
        for load in (
            pb.LoadRequest(module=module + b"\1", engine=ENGINE),
            pb.LoadRequest(module=module, engine=ENGINE, expected_sha256="0" * 64),
        ):
            with pytest.raises(grpc.RpcError):
                caller.stub.Load(load, timeout=60)
        for reason, (behind, wishes) in REFUSED.items():
            asked = {"engine": ENGINE, "omit_artifact": True, **wishes}
            call = caller.stub.Compile(pb.CompileRequest(module=module + behind, **asked))
            assert failure_of(call)[1] == reason
        assert failure_of(caller.compile(b"(module)" + bytes(SIZE)))[1] == "NOT_WASM"
        raw = caller.channel.unary_stream(COMPILE)(b"\xff" * SIZE, timeout=60)
        assert failure_of(raw)[1] == "INVALID_REQUEST"


def compiles_that_lose_their_job_or_worker(daemon: Daemon, caller: Caller) -> None:
    for tag, how in enumerate((signal.SIGKILL, signal.SIGXCPU, signal.SIGSTOP)):
        call = caller.compile(slow(1 + tag))
        for _ in range(2 if how is signal.SIGSTOP else 1):
            job = busy_job(daemon.pid)
            worker = parent_of(job)
            os.kill(job, how)
            if how is signal.SIGSTOP:
                os.kill(worker, signal.SIGKILL)
                eventually(lambda job=job: not parent_of(job), "the job is left")  # type: ignore[misc]
        expected = "COMPILE_TIMEOUT" if how is signal.SIGXCPU else "COMPILER_CRASHED"
        assert failure_of(call)[1] == expected


def callers_that_join_and_leave(daemon: Daemon, caller: Caller) -> None:
    def waiting(count: int) -> None:
        eventually(lambda: daemon.metric("calls") == count, f"not {count} calls wait")

    with held_worker(daemon):
        joined = [caller.compile(large(1), omit_artifact=False) for _ in range(3)]
        waiting(4)
        for how in ("cancels", "is late", "hangs up"):
            with Caller(daemon) as leaving:
                call = leaving.compile(large(2), omit_artifact=False, timeout=4)
                waiting(5)
                if how == "is late":
                    assert outcome_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
                elif how == "cancels":
                    call.cancel()
            waiting(4)
    assert {outcome_of(call) for call in joined} == {grpc.StatusCode.OK}
    for tag in range(2):
        call = caller.compile(slow(7 + tag))
        busy_job(daemon.pid)
        call.cancel()  # It is compiled for nobody.


def callers_that_do_not_read_or_send(daemon: Daemon, _: Caller) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(daemon)) for _ in range(8)]
        calls = [one.compile(large(1), omit_artifact=False) for one in callers]
        for call in calls:
            next(call)
        time.sleep(1)
        for one in callers[:4]:
            one.channel.close()
        late = stack.enter_context(RawCaller(daemon))
        stream = late.begin(COMPILE, SIZE)
        late.send(stream, SIZE // 2)
        assert late.wait(stream)["grpc-status"] == "8"
        eventually(lambda: daemon.metric("calls") == 0, "the others are not cut off")
        assert outcome_of(calls[-1]) is not grpc.StatusCode.OK


@pytest.mark.parametrize(
    "use",
    [
        *(large_artifacts, small_messages, modules_that_are_loaded_or_refused),
        *(compiles_that_lose_their_job_or_worker, callers_that_join_and_leave),
        callers_that_do_not_read_or_send,
    ],
)
def test_what_nobody_keeps(keeps_nothing: Daemon, use: Callable[[Daemon, Caller], None]) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        use(keeps_nothing, caller)


def fill(daemon: Daemon) -> None:
    """Have five large modules compiled."""
    with Caller(daemon) as caller, ThreadPoolExecutor(2) as threads:

        def compiled(tag: int) -> grpc.StatusCode:
            return outcome_of(caller.compile(large(tag)))

        assert set(threads.map(compiled, range(5))) == {grpc.StatusCode.OK}


def test_an_eviction_and_a_memory_tier_that_shrinks(tmp_path: Path) -> None:
    config = tmp_path / "wasmkiln.toml"
    config.write_text('memory_bytes = "512MiB"\n')
    flags = [*LIMITS, "--redis-url", "none", "--config", str(config)]
    state = state_with(tmp_path / "state", ENGINE)
    with Daemon(state, flags, command=NO_COLLECTOR) as daemon:
        with gives_back(daemon):
            fill(daemon)
            assert anonymous_memory_of(daemon.pid) > 200 * MIB
            with daemon.client() as client:
                client.evict(everything=True)
        with gives_back(daemon):
            fill(daemon)
            assert anonymous_memory_of(daemon.pid) > 200 * MIB
            config.write_text('memory_bytes = "4MiB"\n')
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log('"event": "reloaded"')


valkey = a_valkey()


@contextmanager
def sharing(state: Path, server: RedisServer, *flags: str) -> Iterator[Daemon]:
    """Run a daemon that keeps nothing but in Redis, or in what the flags say."""
    # As by default, more may wait to be written than five large ones.
    limits = ("--max-module-bytes", "64MiB", "--compile-timeout-s", "120")
    with Daemon(
        fresh_state(state, engines=(ENGINE,)),
        ["--memory-bytes", "0", *limits, *(flags or ("--host-store-bytes", "0"))],
        {"WASMKILN_REDIS_URL": server.url},
        NO_COLLECTOR,
    ) as daemon:
        yield daemon


def read(daemon: Daemon, caller: Caller, tag: int, origin: int) -> None:
    """Get an artifact, and wait for what is written of it."""
    call = caller.compile(wasm.digest(large(tag)), omit_artifact=False)
    assert next(call).header.origin == origin
    assert outcome_of(call) is grpc.StatusCode.OK
    settle(daemon)


def settle(daemon: Daemon) -> None:
    pending = [f"{tier}_pending_writes" for tier in ("redis", "host_store")]
    eventually(lambda: not any(map(daemon.metric, pending)), "writes wait")


def test_what_a_tier_stores_and_what_is_spoilt_there(tmp_path: Path, valkey: RedisServer) -> None:
    with sharing(tmp_path / "state", valkey, "--redis-timeout-s", "20") as daemon:
        store = daemon.state_dir / "host_store"
        with gives_back(daemon), Caller(daemon) as caller:
            fill(daemon)
            settle(daemon)
            for tag in range(5):
                read(daemon, caller, tag, types_pb2.ORIGIN_HOST_STORE)
            for each in store.glob("*/*/*/artifact"):
                each.write_bytes(b"altered")
            for tag in range(5):
                read(daemon, caller, tag, types_pb2.ORIGIN_REDIS)
            store.rename(tmp_path / "away")
            with redis.Redis.from_url(valkey.url) as direct:
                for name in direct.scan_iter("*compiled:*"):
                    direct.setrange(name, SIZE // 2, b"altered")
            for tag in range(5):
                read(daemon, caller, tag, types_pb2.ORIGIN_COMPILED)


def test_calls_that_wait_for_another_daemon_and_take_over(
    tmp_path: Path, valkey: RedisServer
) -> None:
    with (
        sharing(tmp_path / "other", valkey) as other,
        sharing(tmp_path / "state", valkey) as daemon,
        gives_back(daemon),
        Caller(other) as first,
        Caller(daemon) as caller,
    ):
        for tag in range(2):
            call = first.compile(slow(1 + tag))
            job = busy_job(other.pid)
            assert stopped(job)
            calls = [caller.compile(slow(1 + tag)) for _ in range(2)]
            eventually(lambda: daemon.metric("calls") == 2, "the calls do not wait")
            os.kill(job, signal.SIGKILL)
            assert failure_of(call)[1] == "COMPILER_CRASHED"
            assert {outcome_of(each) for each in calls} == {grpc.StatusCode.OK}
            settle(daemon)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_writes_to_a_redis_that_is_sick(
    tmp_path: Path, valkey: RedisServer, how: signal.Signals
) -> None:
    with (
        sharing(tmp_path / "state", valkey) as daemon,
        gives_back(daemon),
        daemon.client() as client,
    ):
        client.compile(wasm.adder(1))
        valkey.process.send_signal(how)
        fill(daemon)
        client.evict(everything=True)  # What waits to be written, too.
        valkey.process.send_signal(signal.SIGCONT)


def test_eighteen_large_artifacts_at_once(tmp_path: Path) -> None:
    def served(tag: int) -> None:
        """Get a module compiled, and try again as long as the daemon has no room."""
        with Caller(daemon) as caller:
            while True:
                call = caller.compile(large(tag), omit_artifact=False)
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
