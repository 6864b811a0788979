"""However a call ends, reference counts alone free what it held: no collector runs here."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb

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
from tests.e2e.daemon import TWO_ENGINES, fresh_state
from tests.e2e.processes import cpu_s_of, eventually, jobs_of, parent_of
from tests.e2e.programs import Installed
from tests.memory.watched import Watched

MIB = 1024 * 1024
BAD = wasm.CORE_PREAMBLE + b"\x01\x02" + bytes(MIB)
FLAGS = [
    *("--redis-url", "none", "--memory-bytes", "0", "--host-store-bytes", "0"),
    *("--workers", "1", "--queue-length", "2"),
    *("--caller-timeout-s", "1", "--max-artifact-bytes", "48MiB", "--max-module-bytes", "64MiB"),
    *("--compile-timeout-s", "300", "--compile-cpu-s", "300"),
    *("--compile-memory-bytes", "512MiB", "--quarantine-s", "60"),
]


@pytest.fixture(scope="module")
def kiln(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A daemon that keeps nothing, with two engines."""
    state = fresh_state(tmp_path_factory.mktemp("kiln") / "state", engines=TWO_ENGINES)
    with Watched(state, FLAGS) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.fixture
def caller(kiln: Watched) -> Iterator[Caller]:
    with Caller(kiln) as one:
        yield one


def large(tag: int) -> bytes:
    """A module whose artifact has more than a MiB."""
    return wasm.with_data(MIB, tag)


def test_a_compile(kiln: Watched, caller: Caller) -> None:
    with kiln.leaves_nothing():
        for tag in range(3):
            assert len(list(caller.compile(large(tag), omit_artifact=False))) > 2
        asked = pb.CompileRequest(module=large(1), engine=ENGINE, skip_cache_lookup=True)
        assert outcome_of(caller.stub.Compile(asked, timeout=60)) is grpc.StatusCode.OK


def test_a_flight_that_many_join(kiln: Watched, caller: Caller) -> None:
    with kiln.leaves_nothing():
        with held_worker(kiln):
            calls = [caller.compile(large(10), omit_artifact=False) for _ in range(5)]
            failing = [caller.compile(BAD) for _ in range(5)]
            eventually(lambda: kiln.metric("calls") == 11, "not all calls have come")
        assert {outcome_of(call) for call in calls} == {grpc.StatusCode.OK}
        assert {failure_of(call)[1] for call in failing} == {"MODULE_INVALID"}


@pytest.mark.parametrize(
    ("reason", "request_"),
    [
        ("MODULE_INVALID", {"module": BAD}),
        ("NOT_WASM", {"module": b"(module)" + bytes(MIB)}),
        ("MODULE_TOO_LARGE", {"module": lambda: wasm.CORE_PREAMBLE + bytes(64 * MIB)}),
        ("MODULE_NOT_LOADED", {"module": "0" * 64}),
        ("ENGINE_UNKNOWN", {"module": BAD, "engine": "v8"}),
        ("TARGET_UNSUPPORTED", {"module": BAD, "target": "pdp11"}),
        ("SETTING_UNKNOWN", {"module": BAD, "settings": {"speed": "very"}}),
        ("ARTIFACT_TOO_LARGE", {"module": lambda: wasm.with_data(52 * MIB, 1)}),  # Known by now.
        (
            "ENGINE_LACKS_FEATURE",
            {"module": wasm.component(large(2)), "engine": "wasmer-1.1.0"},
        ),
        ("COMPILE_MEMORY_LIMIT", {"module": lambda: wasm.nested_blocks(1_000_000)}),
        ("MODULE_QUARANTINED", {"module": lambda: wasm.nested_blocks(1_000_000)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal(kiln: Watched, caller: Caller, reason: str, request_: dict[str, Any]) -> None:
    request = dict(request_)
    if callable(request["module"]):  # Made only by the process that sends it.
        request["module"] = request["module"]()
    with kiln.leaves_nothing():
        settings = request.pop("settings", {})
        target = request.pop("target", "")
        if settings or target:
            asked = pb.CompileRequest(
                module=request["module"], engine=ENGINE, settings=settings, target=target
            )
            call = caller.stub.Compile(asked, timeout=120)
        else:
            call = caller.compile(request.pop("module"), **request)
        assert failure_of(call)[1] == reason


_COMPILES_S = 0.05


def job_of(kiln: Watched) -> int:
    """Wait for a job that compiles, and return it.

    A job that has used no time may be the one with which a new worker is tried, or not be
    set up yet: its end would be no crash of a compiler.
    """
    found: list[int] = []

    def look() -> list[int]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[:] = [pid for pid in jobs_of(kiln.pid) if cpu_s_of(pid) >= _COMPILES_S]
        return found

    eventually(look, "no job started")
    return found[0]


@pytest.mark.parametrize("victim", ["job", "worker"])
def test_a_compile_that_loses_its_process(kiln: Watched, caller: Caller, victim: str) -> None:
    with kiln.leaves_nothing():
        call = caller.compile(wasm.many_functions(60_000, tag=len(victim)))
        for _ in range(1 if victim == "job" else 2):
            job = job_of(kiln)
            os.kill(job, signal.SIGSTOP)
            if victim == "job":
                os.kill(job, signal.SIGKILL)
            else:
                os.kill(parent_of(job), signal.SIGKILL)
                eventually(lambda job=job: parent_of(job) == 0, "the job is left")  # type: ignore[misc]
        assert failure_of(call)[1] == "COMPILER_CRASHED"


def test_a_compile_that_takes_too_long(kiln: Watched, caller: Caller) -> None:
    with kiln.leaves_nothing():
        call = caller.compile(wasm.nested_blocks(500_000), engine="wasmer-1.1.0")
        # What the kernel sends to a job that has used up its CPU time; at once, since how much work
        # fits into that depends on the processor.
        os.kill(job_of(kiln), signal.SIGXCPU)
        assert failure_of(call)[1] == "COMPILE_TIMEOUT"


def test_a_full_queue_and_a_deadline_that_is_too_near(kiln: Watched) -> None:
    with kiln.leaves_nothing():
        with held_worker(kiln), Caller(kiln) as one, Caller(kiln) as another:
            calls = [one.compile(large(20 + tag)) for tag in range(5)]
            eventually(lambda: kiln.metric("calls") == 3, "the queue is not full")
            late = failure_of(another.compile(large(30), timeout=0.001))[0]
        assert late in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in {outcome_of(call) for call in calls}


@pytest.mark.parametrize("how", ["cancelled", "timed out", "hung up"])
def test_a_caller_that_leaves_while_it_waits(kiln: Watched, how: str) -> None:
    with kiln.leaves_nothing():
        with held_worker(kiln):
            leaving = Caller(kiln)
            deadline = {"timeout": 3} if how == "timed out" else {}
            call = leaving.compile(large(40), omit_artifact=False, **deadline)
            load = leaving.stub.Load.future(pb.LoadRequest(module=large(41), engine=ENGINE))
            eventually(lambda: kiln.metric("calls") == 3, "the calls have not come")
            if how == "cancelled":
                call.cancel()
                load.cancel()
            if how == "hung up":
                leaving.channel.close()
            gone = grpc.StatusCode.OK if how == "hung up" else outcome_of(call)
            assert gone is not grpc.StatusCode.OK or how == "hung up"
            load.cancel()
            eventually(lambda: kiln.metric("calls") == 1, "the calls have not ended")
        leaving.channel.close()


def test_a_caller_that_leaves_while_its_job_runs(kiln: Watched, caller: Caller) -> None:
    with kiln.leaves_nothing():
        call = caller.compile(wasm.many_functions(20_000, tag=9), omit_artifact=False)
        eventually(lambda: len(jobs_of(kiln.pid)) == 1, "no job started")
        call.cancel()
        eventually(lambda: kiln.metric("flights") == 0, "the flight does not end")


def test_a_reader_that_is_cut_off(kiln: Watched) -> None:
    with kiln.leaves_nothing(), Caller(kiln) as polite, RawCaller(kiln) as rude:
        call = polite.compile(wasm.with_data(20 * MIB, 5), omit_artifact=False)
        module = wasm.many_functions(8_000, tag=6)  # Its artifact has a MiB.
        request = pb.CompileRequest(module=module, engine=ENGINE).SerializeToString()
        stream = rude.begin(COMPILE, len(request))
        assert rude.send(stream, request) == len(request)
        eventually(lambda: kiln.metric("calls") == 2, "the calls do not begin")
        eventually(kiln.quiet, "the readers are not cut off", 150)
        assert outcome_of(call) is not grpc.StatusCode.OK
        eventually(kiln.quiet, "the rude reader keeps its answer")


def test_a_reader_that_hangs_up_in_the_middle(kiln: Watched) -> None:
    with kiln.leaves_nothing():
        for closes in (True, False):
            with Caller(kiln) as caller:
                call = caller.compile(wasm.with_data(20 * MIB, 5), omit_artifact=False)
                next(call)
                if not closes:
                    call.cancel()
                    eventually(kiln.quiet, "the call has not ended")


def test_a_request_that_is_no_message_or_never_arrives(kiln: Watched) -> None:
    with kiln.leaves_nothing():
        with Caller(kiln) as caller:
            raw = caller.channel.unary_stream(COMPILE)(b"\xff" * MIB, timeout=30)
            assert failure_of(raw)[1] == "INVALID_REQUEST"
        with RawCaller(kiln) as caller:
            stream = caller.begin(COMPILE, MIB)
            caller.send(stream, MIB // 2)
            assert caller.wait(stream)["grpc-status"] == "8"


def test_load(kiln: Watched, caller: Caller) -> None:
    def load(module: bytes, expected: str = "") -> Any:
        asked = pb.LoadRequest(module=module, engine=ENGINE, expected_sha256=expected)
        return caller.stub.Load(asked, timeout=60)

    with kiln.leaves_nothing():
        load(large(50))
        load(large(50))
        with pytest.raises(grpc.RpcError, match="invalid"):
            load(BAD)
        with pytest.raises(grpc.RpcError, match="SHA-256"):
            load(large(51), "0" * 64)
        with pytest.raises(grpc.RpcError, match="text"):
            load(b"(module)" + bytes(MIB))
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(load, [large(52)] * 4))


def test_all_other_calls(kiln: Watched, caller: Caller) -> None:
    admin = admin_service_pb2_grpc.AdminServiceStub(caller.channel)
    keys = [types_pb2.ArtifactKey(module_sha256=f"{n:064x}") for n in range(200)]
    with kiln.leaves_nothing():
        assert len(caller.stub.FindMissing(pb.FindMissingRequest(keys=keys)).missing) == 200
        with pytest.raises(grpc.RpcError):
            caller.stub.FindMissing(
                pb.FindMissingRequest(keys=[types_pb2.ArtifactKey(module_sha256="x" * MIB)])
            )
        caller.stub.Stats(pb.StatsRequest())
        caller.stub.GetCapabilities(pb.GetCapabilitiesRequest())
        admin.Evict(admin_service_pb2.EvictRequest(all=True))
        with pytest.raises(grpc.RpcError):
            admin.Evict(admin_service_pb2.EvictRequest())
        admin.ListQuarantine(admin_service_pb2.ListQuarantineRequest())
        admin.ReleaseQuarantine(admin_service_pb2.ReleaseQuarantineRequest(all=True))
