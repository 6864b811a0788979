"""Like test_cycles, with tiers: memory, Redis with and without faults, and other daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from wasmkiln.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of, header_of, outcome_of
from tests.e2e.daemon import Daemon, RedisDaemon, fresh_state
from tests.e2e.processes import eventually, jobs_of
from tests.e2e.programs import Installed, inside
from tests.memory.watched import Watched
from tests.servers.redis_server import RedisServer, binary_of, redis_server

MIB = 1024 * 1024
FLAGS = [
    *("--workers", "1", "--redis-timeout-s", "0.5"),
    *("--compile-timeout-s", "60"),
]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def states(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the state directories of a fleet."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def kiln(states: Path, valkey: RedisServer) -> Iterator[Watched]:
    """A daemon that keeps nothing in memory."""
    state = fresh_state(states / "kiln", engines=(ENGINE,))
    flags = [*FLAGS, "--memory-bytes", "0", "--host-store-bytes", "0"]
    with Watched(state, flags, {"WASMKILN_REDIS_URL": valkey.url}) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.fixture(scope="module")
def other(states: Path, valkey: RedisServer) -> Iterator[RedisDaemon]:
    """Another daemon of the fleet."""
    state = fresh_state(states / "other", engines=(ENGINE,))
    with RedisDaemon(state, FLAGS, {"WASMKILN_REDIS_URL": valkey.url}) as daemon:
        yield daemon


@pytest.fixture
def caller(kiln: Watched) -> Iterator[Caller]:
    with Caller(kiln) as one:
        yield one


def large(tag: int) -> bytes:
    """A module whose artifact has more than a MiB."""
    return wasm.with_data(MIB, tag)


def written(daemon: Daemon) -> None:
    """Wait until nothing waits to be written to Redis."""
    eventually(lambda: daemon.metric("redis_pending_writes") == 0, "writes wait")


def origin_of(caller: Caller, module: bytes) -> int:
    return int(header_of(caller.compile(wasm.digest(module), omit_artifact=False)).origin)


def test_memory_hits(states: Path) -> None:
    state = fresh_state(states / "memory", engines=(ENGINE,))
    with Watched(state, [*FLAGS, "--redis-url", "none"]) as daemon, Caller(daemon) as caller:
        with daemon.leaves_nothing(kept=True):
            header_of(caller.compile(large(1)))
            for _ in range(3):
                assert origin_of(caller, large(1)) == types_pb2.ORIGIN_MEMORY
        with daemon.leaves_nothing():
            admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
            admin.Evict(admin_service_pb2.EvictRequest(all=True))


def test_host_store_hits_and_files(states: Path) -> None:
    state = fresh_state(states / "host", engines=(ENGINE,))
    flags = [*FLAGS, "--redis-url", "none", "--memory-bytes", "0"]
    with Watched(state, flags) as daemon, Caller(daemon) as caller:

        def file_of(module: bytes) -> str:
            asked = pb.CompileRequest(sha256=wasm.digest(module), accept_host_file=True)
            [first] = caller.stub.Compile(asked, timeout=60)
            return str(first.header.host_file.path)

        with daemon.leaves_nothing():
            header_of(caller.compile(large(1)))
            eventually(lambda: daemon.metric("host_store_pending_writes") == 0, "writes wait")
            for _ in range(3):
                assert origin_of(caller, large(1)) == types_pb2.ORIGIN_HOST_STORE
            assert Path(file_of(large(1))).exists()
        with daemon.leaves_nothing():
            Path(file_of(large(1))).write_bytes(b"altered")
            assert failure_of(caller.compile(wasm.digest(large(1))))[1] == "MODULE_NOT_LOADED"
        with daemon.leaves_nothing():
            for folder in sorted((state / "host_store").rglob("*"), reverse=True):
                folder.rmdir() if folder.is_dir() else folder.unlink()
            (state / "host_store").rmdir()
            (state / "host_store").write_text("in the way")
            header_of(caller.compile(large(2)))


def test_redis_hits_and_misses(kiln: Watched, caller: Caller) -> None:
    with kiln.leaves_nothing():
        header_of(caller.compile(large(1)))
        written(kiln)
        for _ in range(3):
            assert origin_of(caller, large(1)) == types_pb2.ORIGIN_REDIS
        assert failure_of(caller.compile("0" * 64))[1] == "MODULE_NOT_LOADED"
        keys = [types_pb2.ArtifactKey(module_sha256=wasm.digest(large(1)), engine=ENGINE)]
        assert not caller.stub.FindMissing(pb.FindMissingRequest(keys=keys)).missing
        asked = pb.CompileRequest(sha256=wasm.digest(large(1)), engine=ENGINE)
        asked.skip_cache_lookup = True
        assert outcome_of(caller.stub.Compile(asked, timeout=60)) is grpc.StatusCode.OK
        caller.stub.Load(pb.LoadRequest(module=large(1), engine=ENGINE), timeout=60)
        written(kiln)
        admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
        admin.Evict(admin_service_pb2.EvictRequest(module_sha256=wasm.digest(large(1))))


@pytest.mark.parametrize("damage", ["no value", "cut", "flipped", "a frame gone", "another type"])
def test_a_stored_value_that_does_not_verify(
    kiln: Watched, caller: Caller, valkey: RedisServer, damage: str
) -> None:
    header = header_of(caller.compile(large(2)))
    written(kiln)
    name = f"wasm:3:compiled:{{{header.module_sha256}}}:{ENGINE}:{header.fingerprint}"
    with redis.Redis.from_url(valkey.url) as direct, kiln.leaves_nothing():
        stored = direct.get(name)
        assert isinstance(stored, bytes)
        if damage == "another type":
            direct.delete(name)
            direct.rpush(name, "x")
        else:
            spoilt = {
                "no value": b"x" * MIB,
                "cut": stored[:-1],
                "a frame gone": stored[1000:],
            }
            flipped = stored[:-100] + bytes([stored[-100] ^ 1]) + stored[-99:]
            direct.set(name, spoilt.get(damage, flipped))
        assert outcome_of(caller.compile(large(2), omit_artifact=False)) is grpc.StatusCode.OK
        written(kiln)


def test_a_call_that_waits_for_another_daemon(kiln: Watched, caller: Caller, other: Daemon) -> None:
    module = wasm.many_functions(20_000, tag=77)
    with kiln.leaves_nothing(), Caller(other) as others:
        first = others.compile(module)
        eventually(lambda: len(jobs_of(other.pid)) == 1, "no job started")
        calls = [caller.compile(module, omit_artifact=False) for _ in range(3)]
        assert {outcome_of(call) for call in (first, *calls)} == {grpc.StatusCode.OK}
        written(kiln)


def test_a_call_that_takes_over_from_another_daemon(
    kiln: Watched, caller: Caller, other: Daemon
) -> None:
    module = wasm.with_data(MIB, 78)[:-5] + b"\0" * 4 + b"\x01"
    slow = wasm.many_functions(60_000, tag=79)
    with kiln.leaves_nothing(), Caller(other) as others:
        first = others.compile(slow)
        eventually(lambda: len(jobs_of(other.pid)) == 1, "no job started")
        [job] = jobs_of(other.pid)
        os.kill(job, signal.SIGSTOP)
        call = caller.compile(slow, omit_artifact=False)
        time.sleep(1)
        os.kill(job, signal.SIGKILL)
        assert failure_of(first)[1] == "COMPILER_CRASHED"
        assert outcome_of(call) is grpc.StatusCode.OK
        outcome_of(caller.compile(module))
        written(kiln)


def test_a_job_past_its_time(states: Path, valkey: RedisServer) -> None:
    state = fresh_state(states / "hasty", engines=(ENGINE,))
    flags = [*FLAGS, "--memory-bytes", "0", "--compile-timeout-s", "2"]
    with (
        Watched(state, flags, {"WASMKILN_REDIS_URL": valkey.url}) as daemon,
        Caller(daemon) as caller,
        daemon.leaves_nothing(),
    ):
        for _ in range(2):
            call = caller.compile(wasm.many_functions(30_000, tag=80))
            eventually(lambda: len(jobs_of(daemon.pid)) == 1, "no job started")
            for job in jobs_of(daemon.pid):
                os.kill(job, signal.SIGSTOP)
            assert failure_of(call)[1] == "COMPILE_TIMEOUT"


@pytest.mark.parametrize("how", ["hangs", "is gone"])
def test_a_redis_that_is_sick(states: Path, tmp_path: Path, how: str) -> None:
    state = fresh_state(states / how.replace(" ", "-"), engines=(ENGINE,))
    flags = [*FLAGS, "--memory-bytes", "0"]
    flags += ["--max-module-bytes", "2MiB", "--max-artifact-bytes", "2MiB"]  # That many may wait.
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as server,
        Watched(state, flags, {"WASMKILN_REDIS_URL": server.url}) as daemon,
        Caller(daemon) as caller,
    ):
        header_of(caller.compile(large(1)))
        written(daemon)
        with daemon.leaves_nothing(kept=True):  # What waits to be written lives on.
            server.process.send_signal(signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
            for tag in range(1, 6):
                call = caller.compile(large(tag), omit_artifact=False)
                assert outcome_of(call) is grpc.StatusCode.OK
                time.sleep(0.3)  # Meanwhile it is asked whether it is back.
            assert daemon.metric("redis_dropped_writes_total") > 0
            keys = [types_pb2.ArtifactKey(module_sha256="1" * 64, engine=ENGINE)]
            caller.stub.FindMissing(pb.FindMissingRequest(keys=keys))
            admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
            admin.Evict(admin_service_pb2.EvictRequest(all=True))
            server.process.send_signal(signal.SIGCONT)


def test_services_of_others(kiln: Watched) -> None:
    with kiln.leaves_nothing(), Caller(kiln) as caller:
        health = health_pb2_grpc.HealthStub(caller.channel)
        health.Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError):
            health.Check(health_pb2.HealthCheckRequest(service="none"))
        watching = health.Watch(health_pb2.HealthCheckRequest())
        next(watching)
        watching.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        list(reflection.ServerReflectionInfo(iter([asked, asked])))


@pytest.mark.parametrize("command", ["scrub", "ls", "export", "import"])
def test_tools_keep_no_value(
    kiln: Watched, caller: Caller, valkey: RedisServer, tmp_path: Path, command: str
) -> None:
    headers = [header_of(caller.compile(large(tag))) for tag in range(90, 93)]
    written(kiln)
    target = tmp_path / "values"
    report = tmp_path / "report.json"

    def run(*arguments: str) -> int:
        program = [*inside("tests.memory.collector_off"), "cache", *arguments]
        state = ["--state-dir", str(kiln.state_dir)]
        environ = {"WASMKILN_REDIS_URL": valkey.url, "WASMKILN_TEST_GARBAGE": str(report)}
        done = subprocess.run(
            [*program, *state], env={**os.environ, **environ}, capture_output=True, check=False
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done.returncode

    run("export", str(target)) if command == "import" else None
    with redis.Redis.from_url(valkey.url) as direct:
        name = f"wasm:3:compiled:{{{headers[0].module_sha256}}}:{ENGINE}:{headers[0].fingerprint}"
        stored = direct.get(name)
        assert isinstance(stored, bytes)
        direct.set(name, stored[:-1])
    file = [str(target)] if command in ("export", "import") else []
    assert run(command, *file) in (0, 3)
    told = json.loads(report.read_text())
    assert [one for one in told["cycles"] + told["kept"] if " bytes, held by " in one] == []
