"""The daemon returns memory within six seconds of its last use, on every path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import admin_service_pb2, admin_service_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import anonymous_memory_of, eventually
from tests.e2e.programs import Installed
from tests.memory.watched import HELD
from tests.servers.redis_server import RedisServer, binary_of, redis_server

MIB = 1024 * 1024
SIZE = 24 * MIB
LIMITS = ["--max-module-bytes", "64MiB", "--compile-timeout-s", "120", "--caller-timeout-s", "3"]
# Less is not worth a look; and Python grows a little at each first time.
_SLACK = 28 * MIB
_WITHIN_S = 6.0


@pytest.fixture
def state(engines: Installed, tmp_path: Path) -> Path:
    return state_with(tmp_path / "state", ENGINE)


@pytest.fixture(scope="module")
def keeps_nothing(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without tiers; each test compares its memory with what it was before the test."""
    state = state_with(tmp_path_factory.mktemp("keeps_nothing") / "state", ENGINE)
    no_tiers = ("--memory-bytes", "0", "--host-store-bytes", "0", "--redis-url", "none")
    with Daemon(state, [*LIMITS, *no_tiers]) as daemon:
        yield daemon


@contextmanager
def gives_back(daemon: Daemon, *, slack: int = _SLACK) -> Iterator[None]:
    """Fail unless the daemon's memory is what it was, six seconds after the context."""
    with Caller(daemon) as caller:
        outcome_of(caller.compile(wasm.with_data(MIB, 99), omit_artifact=False))
    before = anonymous_memory_of(daemon.pid)
    yield
    eventually(lambda: all(daemon.metric(name) == 0 for name in HELD), "something is held")
    used = anonymous_memory_of(daemon.pid)
    deadline = time.monotonic() + _WITHIN_S
    while (after := anonymous_memory_of(daemon.pid)) - before > slack:
        if time.monotonic() > deadline:
            raise AssertionError(f"{before / MIB:.0f} -> {used / MIB:.0f} -> {after / MIB:.0f} MiB")
        time.sleep(0.1)
    print(f"{before / MIB:.0f} -> {used / MIB:.0f} -> {after / MIB:.0f} MiB")


@pytest.mark.parametrize("omit", [False, True], ids=["read", "not read"])
def test_artifacts_that_nobody_keeps(keeps_nothing: Daemon, omit: bool) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        for tag in range(8):
            call = caller.compile(wasm.with_data(SIZE, tag), omit_artifact=omit)
            assert outcome_of(call) is grpc.StatusCode.OK


def test_many_small_messages_of_a_small_module(keeps_nothing: Daemon) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        for tag in range(3):
            call = caller.compile(wasm.many_functions(100_000, tag), omit_artifact=False)
            assert outcome_of(call) is grpc.StatusCode.OK


def test_modules_that_are_refused(keeps_nothing: Daemon) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        for tag in range(8):
            bad = wasm.with_data(SIZE, tag) + b"\x01"
            assert outcome_of(caller.compile(bad)) is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError):
                caller.stub.Load(pb.LoadRequest(module=bad, engine=ENGINE), timeout=60)


def test_modules_that_are_loaded(keeps_nothing: Daemon) -> None:
    with gives_back(keeps_nothing), Caller(keeps_nothing) as caller:
        for tag in range(8):
            asked = pb.LoadRequest(module=wasm.with_data(SIZE, tag), engine=ENGINE)
            caller.stub.Load(asked, timeout=60)


def test_callers_that_do_not_read(keeps_nothing: Daemon) -> None:
    module = wasm.with_data(SIZE, 1)
    with gives_back(keeps_nothing):
        callers = [Caller(keeps_nothing) for _ in range(8)]
        calls = [caller.compile(module, omit_artifact=False) for caller in callers]
        for call in calls:
            next(call)
        time.sleep(1)
        for caller in callers:
            caller.channel.close()


def test_an_eviction(state: Path) -> None:
    flags = [*LIMITS, "--memory-bytes", "512MiB", "--redis-url", "none"]
    with Daemon(state, flags) as daemon, gives_back(daemon), Caller(daemon) as caller:
        fill(caller)
        assert anonymous_memory_of(daemon.pid) > 240 * MIB
        admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
        admin.Evict(admin_service_pb2.EvictRequest(all=True))


def test_a_memory_tier_that_shrinks(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "wasmkiln.toml"
    config.write_text('memory_bytes = "512MiB"\n')
    flags = [*LIMITS, "--redis-url", "none", "--config", str(config)]
    with Daemon(state, flags) as daemon, gives_back(daemon):
        with Caller(daemon) as caller:
            fill(caller)
        assert anonymous_memory_of(daemon.pid) > 240 * MIB
        config.write_text('memory_bytes = "4MiB"\n')
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log('"event": "reloaded"')


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running


def test_what_is_written_to_redis_and_read_from_there(state: Path, valkey: RedisServer) -> None:
    flags = [*LIMITS, "--memory-bytes", "0", "--host-store-bytes", "0", "--redis-timeout-s", "20"]
    environ = {"WASMKILN_REDIS_URL": valkey.url}
    with Daemon(state, flags, environ) as daemon, gives_back(daemon), Caller(daemon) as caller:
        fill(caller)
        eventually(lambda: daemon.metric("redis_pending_writes") == 0, "writes wait", 60)
        for tag in range(5):
            call = caller.compile(wasm.digest(wasm.with_data(SIZE, tag)), omit_artifact=False)
            assert next(call).header.origin == 2
            assert outcome_of(call) is grpc.StatusCode.OK


def fill(caller: Caller) -> None:
    """Have five large modules compiled."""

    def compiled(tag: int) -> grpc.StatusCode:
        return outcome_of(caller.compile(wasm.with_data(SIZE, tag)))

    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(compiled, range(5))) == {grpc.StatusCode.OK}
