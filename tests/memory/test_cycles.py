"""However a call ends, reference counts alone free what it held: no collector runs here."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from wasmkiln import Client
from wasmkiln.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import (
    COMPILE,
    ENGINE,
    Caller,
    RawCaller,
    failure_of,
    header_of,
    held_worker,
    outcome_of,
    stopped_job,
)
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.processes import cpu_s_of, eventually, jobs_of, kill_job, parent_of
from tests.e2e.programs import installed_engines
from tests.memory.watched import Watched
from tests.servers.redis_server import RedisServer, binary_of, redis_server

MIB = 1024 * 1024
BAD = wasm.CORE_PREAMBLE + b"\x01\x02" + bytes(MIB)
NO_TIERS = ("--redis-url", "none", "--memory-bytes", "0", "--host-store-bytes", "0")
FLAGS = [
    *("--queue-length", "2", "--caller-timeout-s", "1"),
    *("--max-artifact-bytes", "48MiB", "--max-module-bytes", "64MiB"),
    *("--compile-timeout-s", "300", "--compile-cpu-s", "300"),
    *("--compile-memory-bytes", "512MiB", "--quarantine-s", "60"),
]
SHARED = ("--memory-bytes", "0", "--redis-timeout-s", "0.5")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the state directories of a fleet."""
    installed_engines()
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def kiln(states: Path) -> Iterator[Watched]:
    """A daemon that keeps nothing, with two engines."""
    with Watched(fresh_state(states / "kiln", engines=TWO_ENGINES), [*NO_TIERS, *FLAGS]) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.fixture
def caller(kiln: Watched) -> Iterator[Caller]:
    """A caller of that daemon, of whose calls nothing is left after the test."""
    with kiln.leaves_nothing(), Caller(kiln) as one:
        yield one


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def sharing(states: Path, valkey: RedisServer) -> Iterator[Watched]:
    """A daemon that keeps nothing but in Redis."""
    flags = [*SHARED, "--host-store-bytes", "0"]
    state = fresh_state(states / "sharing", engines=(ENGINE,))
    with Watched(state, flags, {"WASMKILN_REDIS_URL": valkey.url}) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


def large(tag: int) -> bytes:
    """A module whose artifact has more than a MiB."""
    return wasm.with_data(MIB, tag)


def test_compiles(caller: Caller) -> None:
    assert len(list(caller.compile(large(1), omit_artifact=False))) > 2
    asked = pb.CompileRequest(module=large(1), engine=ENGINE, skip_cache_lookup=True)
    assert outcome_of(caller.stub.Compile(asked, timeout=60)) is grpc.StatusCode.OK


def test_a_flight_that_many_join(kiln: Watched, caller: Caller) -> None:
    with held_worker(kiln):
        calls = [caller.compile(large(10), omit_artifact=False) for _ in range(5)]
        failing = [caller.compile(BAD) for _ in range(5)]
        eventually(lambda: kiln.metric("calls") == 11, "not all calls have come")
    assert {outcome_of(call) for call in calls} == {grpc.StatusCode.OK}
    assert {failure_of(call)[1] for call in failing} == {"MODULE_INVALID"}


def test_loads(caller: Caller) -> None:
    def load(module: bytes, expected: str = "") -> Any:
        asked = pb.LoadRequest(module=module, engine=ENGINE, expected_sha256=expected)
        return caller.stub.Load(asked, timeout=60)

    for module, expected, words in (
        (BAD, "", "invalid"),
        (large(51), "0" * 64, "SHA-256"),
        (b"(module)" + bytes(MIB), "", "text"),
    ):
        with pytest.raises(grpc.RpcError, match=words):
            load(module, expected)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(load, [large(52)] * 4))


REFUSALS: dict[str, dict[str, Any]] = {
    "MODULE_INVALID": {"module": BAD},
    "NOT_WASM": {"module": b"(module)" + bytes(MIB)},
    "MODULE_TOO_LARGE": {"module": lambda: wasm.CORE_PREAMBLE + bytes(64 * MIB)},
    "MODULE_NOT_LOADED": {"sha256": "0" * 64},
    "ENGINE_UNKNOWN": {"module": BAD, "engine": "v8"},
    "TARGET_UNSUPPORTED": {"module": BAD, "target": "pdp11"},
    "SETTING_UNKNOWN": {"module": BAD, "settings": {"speed": "very"}},
    "ARTIFACT_TOO_LARGE": {"module": lambda: wasm.with_data(52 * MIB, 1)},  # Known by now.
    "ENGINE_LACKS_FEATURE": {"module": wasm.component(large(2)), "engine": "wasmer-1.1.0"},
    "COMPILE_MEMORY_LIMIT": {"module": lambda: wasm.nested_blocks(1_000_000)},
    "MODULE_QUARANTINED": {"module": lambda: wasm.nested_blocks(1_000_000)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal(caller: Caller, reason: str) -> None:
    # What is large is made only by the process that sends it.
    made = {name: it() if callable(it) else it for name, it in REFUSALS[reason].items()}
    asked = pb.CompileRequest(**{"engine": ENGINE, "omit_artifact": True, **made})
    assert failure_of(caller.stub.Compile(asked, timeout=120))[1] == reason


def job_of(kiln: Watched) -> int:
    """Wait for a job that compiles, and return it.

    A job that has used no time may be the one with which a new worker is tried, or not be
    set up yet: its end would be no crash of a compiler.
    """
    found: list[int] = []

    def look() -> list[int]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[:] = [pid for pid in jobs_of(kiln.pid) if cpu_s_of(pid) >= 0.05]
        return found

    eventually(look, "no job started")
    return found[0]


@pytest.mark.parametrize("victim", ["job", "worker", "time"])
def test_a_compile_that_loses_its_process_or_takes_too_long(
    kiln: Watched, caller: Caller, victim: str
) -> None:
    engine = "wasmer-1.1.0" if victim == "time" else ENGINE
    call = caller.compile(wasm.many_functions(60_000, tag=len(victim)), engine=engine)
    if victim == "job":
        kill_job(kiln.pid)
    elif victim == "time":
        # The kernel sends SIGXCPU to a job that has used up its CPU time.
        os.kill(job_of(kiln), signal.SIGXCPU)
    for _ in range(2 if victim == "worker" else 0):
        job = job_of(kiln)
        os.kill(job, signal.SIGSTOP)
        os.kill(parent_of(job), signal.SIGKILL)
        eventually(lambda job=job: parent_of(job) == 0, "the job is left")  # type: ignore[misc]
    assert failure_of(call)[1] == ("COMPILE_TIMEOUT" if victim == "time" else "COMPILER_CRASHED")


def test_a_full_queue_and_a_deadline_that_is_too_near(kiln: Watched, caller: Caller) -> None:
    with held_worker(kiln), Caller(kiln) as another:
        calls = [caller.compile(large(20 + tag)) for tag in range(5)]
        eventually(lambda: kiln.metric("calls") == 3, "the queue is not full")
        late = failure_of(another.compile(large(30), timeout=0.001))[0]
    assert late in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in {outcome_of(call) for call in calls}


@pytest.mark.parametrize("how", ["cancelled", "timed out", "hung up"])
def test_a_caller_that_leaves_while_it_waits(kiln: Watched, caller: Caller, how: str) -> None:
    with held_worker(kiln):
        deadline = {"timeout": 3} if how == "timed out" else {}
        call = caller.compile(large(40), omit_artifact=False, **deadline)
        load = caller.stub.Load.future(pb.LoadRequest(module=large(41), engine=ENGINE))
        eventually(lambda: kiln.metric("calls") == 3, "the calls have not come")
        if how == "cancelled":
            call.cancel()
        if how == "hung up":
            caller.channel.close()
        else:
            assert outcome_of(call) is not grpc.StatusCode.OK
        load.cancel()
        eventually(lambda: kiln.metric("calls") == 1, "the calls have not ended")


def test_a_caller_that_leaves_while_its_job_runs(kiln: Watched, caller: Caller) -> None:
    call = caller.compile(wasm.many_functions(20_000, tag=9), omit_artifact=False)
    eventually(lambda: len(jobs_of(kiln.pid)) == 1, "no job started")
    call.cancel()
    eventually(lambda: kiln.metric("flights") == 0, "the flight does not end")


def test_readers_that_are_cut_off(kiln: Watched, caller: Caller) -> None:
    call = caller.compile(wasm.with_data(20 * MIB, 5), omit_artifact=False)
    module = wasm.many_functions(8_000, tag=6)  # Its artifact has a MiB.
    request = pb.CompileRequest(module=module, engine=ENGINE).SerializeToString()
    with RawCaller(kiln) as rude:
        stream = rude.begin(COMPILE, len(request))
        assert rude.send(stream, request) == len(request)
        eventually(lambda: kiln.metric("calls") == 2, "the calls do not begin")
        eventually(kiln.quiet, "the readers are not cut off", 150)
    assert outcome_of(call) is not grpc.StatusCode.OK


@pytest.mark.parametrize("closes", [True, False])
def test_a_reader_that_hangs_up_in_the_middle(kiln: Watched, caller: Caller, closes: bool) -> None:
    call = caller.compile(wasm.with_data(20 * MIB, 5), omit_artifact=False)
    next(call)
    if not closes:
        call.cancel()
        eventually(kiln.quiet, "the call has not ended")


def test_a_request_that_is_no_message_or_never_arrives(kiln: Watched, caller: Caller) -> None:
    raw = caller.channel.unary_stream(COMPILE)(b"\xff" * MIB, timeout=30)
    assert failure_of(raw)[1] == "INVALID_REQUEST"
    with RawCaller(kiln) as late:
        stream = late.begin(COMPILE, MIB)
        late.send(stream, MIB // 2)
        assert late.wait(stream)["grpc-status"] == "8"


def test_uploads(kiln: Watched, caller: Caller) -> None:
    module = wasm.with_data(2 * MIB, 20)
    first = pb.UploadRequest(sha256=wasm.digest(module), size_bytes=len(module), engine=ENGINE)
    parts = [pb.UploadRequest(offset=at, data=module[at : at + MIB]) for at in (0, MIB, 2 * MIB)]

    def upload(*messages: pb.UploadRequest) -> Any:
        return caller.stub.Upload.future(iter(messages), timeout=60)

    assert upload(first, *parts[:1]).code() is grpc.StatusCode.ABORTED
    assert upload(first, *parts[2:]).code() is grpc.StatusCode.ABORTED
    assert upload(first, *parts[1:]).code() is grpc.StatusCode.OK
    wrong = [*parts[:2], pb.UploadRequest(offset=2 * MIB, data=bytes(len(module) - 2 * MIB))]
    assert upload(first, *wrong).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caller.stub.QueryUpload(pb.QueryUploadRequest(sha256=first.sha256)).held_bytes == 0


def test_all_other_calls(kiln: Watched, caller: Caller) -> None:
    keys = [types_pb2.ArtifactKey(module_sha256=f"{n:064x}") for n in range(200)]
    malformed = [types_pb2.ArtifactKey(module_sha256="x" * MIB)]
    assert len(caller.stub.FindMissing(pb.FindMissingRequest(keys=keys)).missing) == 200
    with pytest.raises(grpc.RpcError):
        caller.stub.FindMissing(pb.FindMissingRequest(keys=malformed))
    with kiln.client() as client:
        client.stats()
        client.capabilities()
        client.evict(all=True)
        client.quarantined()
        client.release(all=True)
    admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
    with pytest.raises(grpc.RpcError):
        admin.Evict(admin_service_pb2.EvictRequest())
    health = health_pb2_grpc.HealthStub(caller.channel)
    health.Check(health_pb2.HealthCheckRequest())
    with pytest.raises(grpc.RpcError):
        health.Check(health_pb2.HealthCheckRequest(service="none"))
    watching = health.Watch(health_pb2.HealthCheckRequest())
    next(watching)
    watching.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    list(reflection.ServerReflectionInfo(iter([listing, listing])))


def origin_of(caller: Caller, module: bytes) -> int:
    return int(header_of(caller.compile(wasm.digest(module), omit_artifact=False)).origin)


def test_memory_and_the_host_store(states: Path) -> None:
    state = fresh_state(states / "host", engines=(ENGINE,))
    store = state / "host_store"
    with (
        Watched(state, ["--redis-url", "none"]) as daemon,
        Caller(daemon) as caller,
        daemon.client(host_store_dir="none") as client,
    ):

        def forget() -> None:
            client.evict(all=True, tier="memory")

        with daemon.leaves_nothing(kept=True):
            header_of(caller.compile(large(1)))
            for _ in range(3):
                assert origin_of(caller, large(1)) == types_pb2.ORIGIN_MEMORY
            eventually(lambda: daemon.metric("host_store_pending_writes") == 0, "writes wait")
        with daemon.leaves_nothing():
            for _ in range(3):
                forget()
                assert origin_of(caller, large(1)) == types_pb2.ORIGIN_HOST_STORE
            forget()
            asked = pb.CompileRequest(sha256=wasm.digest(large(1)), accept_host_file=True)
            [first] = caller.stub.Compile(asked, timeout=60)
            file = Path(first.header.host_file.path)
        with daemon.leaves_nothing():
            file.write_bytes(b"altered")
            assert failure_of(caller.compile(wasm.digest(large(1))))[1] == "MODULE_NOT_LOADED"
        with daemon.leaves_nothing():
            store.rename(states / "away")
            store.write_text("in the way")
            header_of(caller.compile(large(2)))
            forget()


def test_redis_hits_misses_and_values_that_do_not_verify(
    sharing: Watched, valkey: RedisServer
) -> None:
    with (
        sharing.client() as client,
        Caller(sharing) as caller,
        redis.Redis.from_url(valkey.url) as direct,
    ):
        with sharing.leaves_nothing():
            written(client, caller, large(1))
            for _ in range(3):
                assert origin_of(caller, large(1)) == types_pb2.ORIGIN_REDIS
            assert failure_of(caller.compile("0" * 64))[1] == "MODULE_NOT_LOADED"
            assert not client.find_missing([wasm.digest(large(1))])
            client.compile(large(1), engine=ENGINE, skip_cache_lookup=True)
            client.load(large(1))
            client.evict(wasm.digest(large(1)))
        written(client, caller, large(2))
        [name] = direct.scan_iter(f"*compiled:*{wasm.digest(large(2))}*")
        stored = direct.get(name)
        assert isinstance(stored, bytes)
        for spoilt in (
            b"x" * MIB,
            stored[:-1],
            stored[1000:],
            stored[:-100] + bytes([stored[-100] ^ 1]) + stored[-99:],
            None,
        ):
            with sharing.leaves_nothing():
                if spoilt:
                    direct.set(name, spoilt)
                else:
                    direct.delete(name)
                    direct.rpush(name, "x")
                written(client, caller, large(2))


def written(client: Client, caller: Caller, module: bytes) -> None:
    """Have a module compiled and all of it written to Redis."""
    assert outcome_of(caller.compile(module, omit_artifact=False)) is grpc.StatusCode.OK
    eventually(lambda: not client.stats().pending_writes, "writes wait")


def test_calls_that_wait_for_another_daemon_and_take_over(
    states: Path, sharing: Watched, valkey: RedisServer
) -> None:
    state = fresh_state(states / "other", engines=(ENGINE,))
    # So little that a job has all of it from the start: one that is killed does not run again.
    flags = [*SHARED, "--compile-memory-bytes", "350MiB"]
    with (
        RedisDaemon(state, flags, {"WASMKILN_REDIS_URL": valkey.url}) as other,
        Caller(other) as others,
        Caller(sharing) as caller,
    ):
        sent: list[bytes] = []

        def begin(module: bytes) -> Any:
            sent.append(module)
            return others.compile(module)

        for dies in (False, True):
            with sharing.leaves_nothing():
                job, first = stopped_job(other, begin)
                calls = [caller.compile(sent[-1], omit_artifact=False) for _ in range(3)]
                eventually(lambda: sharing.metric("calls") == 3, "the calls do not wait")
                os.kill(job, signal.SIGKILL if dies else signal.SIGCONT)
                assert (failure_of(first)[1] == "COMPILER_CRASHED") if dies else header_of(first)
                assert {outcome_of(call) for call in calls} == {grpc.StatusCode.OK}
                eventually(lambda: sharing.metric("redis_pending_writes") == 0, "writes wait")


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_redis_that_is_sick(states: Path, tmp_path: Path, how: signal.Signals) -> None:
    state = fresh_state(states / how.name, engines=(ENGINE,))
    flags = [*SHARED, "--max-module-bytes", "2MiB", "--max-artifact-bytes", "2MiB"]  # May wait.
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as server,
        Watched(state, flags, {"WASMKILN_REDIS_URL": server.url}) as daemon,
        Caller(daemon) as caller,
        daemon.client() as client,
    ):
        written(client, caller, large(1))
        with daemon.leaves_nothing(kept=True):  # What waits to be written lives on.
            server.process.send_signal(how)
            for tag in range(1, 6):
                call = caller.compile(large(tag), omit_artifact=False)
                assert outcome_of(call) is grpc.StatusCode.OK
                time.sleep(0.3)  # Meanwhile it is asked whether it is back.
            assert daemon.metric("redis_dropped_writes_total") > 0
            client.find_missing(["1" * 64])
            client.evict(all=True)
            server.process.send_signal(signal.SIGCONT)
