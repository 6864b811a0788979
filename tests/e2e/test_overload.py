"""More work than workers: which calls wait, which are refused, and which jobs are dropped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.callers import (
    BACKGROUND,
    ENGINE,
    Caller,
    failure_of,
    header_of,
    held_worker,
    modules,
    outcome_of,
    stopped_job,
)
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

ONE_WORKER = ["--workers", "1", "--redis-url", "none", "--compile-timeout-s", "120"]
OTHER = "wasmer-1.1.0"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def answered(daemon: Daemon, count: int, *names: str) -> list[str]:
    """Return the names of ``count`` calls in the order in which they were answered."""

    def order() -> list[str]:
        ids = [json.loads(line).get("request_id") for line in list(daemon.log_lines)]
        return [name for name in ids if name in names]

    eventually(lambda: len(order()) == count, "the log does not tell of all calls")
    return order()


@pytest.fixture(scope="module")
def kiln(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one worker, and a queue that a flood can fill."""
    with Daemon(
        state_with(tmp_path_factory.mktemp("kiln") / "state", ENGINE), ONE_WORKER
    ) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


def compiled(daemon: Daemon) -> int:
    return int(daemon.metric("compiles_total", engine=ENGINE, outcome="ok"))


def queued(daemon: Daemon) -> int:
    return int(daemon.metric("queue_depth", engine=ENGINE))


def abandoned(daemon: Daemon, stage: str) -> int:
    return int(daemon.metric("abandoned_total", engine=ENGINE, stage=stage))


def test_a_flood_of_200_keeps_another_waiting_for_a_job_or_two(kiln: Daemon) -> None:
    with Caller(kiln) as flooding, Caller(kiln) as other:
        with held_worker(kiln):
            flood = [flooding.compile(module, name="flood") for module in modules(200)]
            eventually(lambda: queued(kiln) == 200, "the flood does not wait")
            assert kiln.metric("queue_callers", engine=ENGINE) == 1
            single = other.compile(*modules(1), name="single")
            eventually(lambda: queued(kiln) == 201, "the single call does not wait")
        for call in (single, *flood):
            header_of(call)
    order = answered(kiln, 201, "flood", "single")
    assert order.index("single") <= 2


def test_background_work_waits_for_callers_and_takes_their_turn(kiln: Daemon) -> None:
    with Caller(kiln) as warming, Caller(kiln) as other:
        wanted = modules(30)
        with held_worker(kiln):
            warm = [warming.compile(one, name="warm", metadata=BACKGROUND) for one in wanted]
            eventually(lambda: queued(kiln) == 30, "the warming does not wait")
            assert kiln.metric("queue_background", engine=ENGINE) == 30
            calls = [other.compile(module, name="call") for module in modules(3)]
            # Somebody waits now for what was to be warmed last.
            calls.append(other.compile(wanted[-1], name="call"))
            eventually(
                lambda: kiln.metric("queue_background", engine=ENGINE) == 29, "it was not promoted"
            )
        for call in (*calls, *warm):
            header_of(call)
    order = answered(kiln, 34, "warm", "call")
    # The one that was promoted answers both who waited for it and who warmed it.
    assert order[:5].count("call") == 4


def test_an_unknown_priority_is_refused(kiln: Daemon) -> None:
    with Caller(kiln) as caller:
        call = caller.compile(*modules(1), metadata=(("wasmkiln-priority", "urgent"),))
        code, reason, _, _ = failure_of(call)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


def test_queued_work_whose_callers_all_hung_up_never_starts(kiln: Daemon) -> None:
    dropped = abandoned(kiln, "queued")
    with Caller(kiln) as first, Caller(kiln) as second:
        with held_worker(kiln):
            before = compiled(kiln)
            shared, *lonely = modules(6)
            gone = [first.compile(module) for module in (shared, *lonely)]
            eventually(lambda: queued(kiln) == 6, "the calls do not wait")
            stays = second.compile(shared)
            eventually(lambda: kiln.metric("calls") == 8, "the second caller has not come")
            for call in gone:
                call.cancel()
            eventually(lambda: queued(kiln) == 1, "abandoned calls still wait")
            # What another still waits for stays.
        header_of(stays)
        eventually(lambda: compiled(kiln) == before + 2, "more or less was compiled")
    assert abandoned(kiln, "queued") == dropped + 5


@pytest.fixture
def lean(engines: Installed, tmp_path: Path) -> Path:
    return state_with(tmp_path / "state", ENGINE)


def test_a_full_queue_refuses_and_lets_another_caller_in(lean: Path) -> None:
    with (
        Daemon(lean, [*ONE_WORKER, "--queue-length", "8"]) as daemon,
        Caller(daemon) as flooding,
        Caller(daemon) as other,
    ):
        with held_worker(daemon):
            flood = [flooding.compile(module) for module in modules(8)]
            eventually(lambda: queued(daemon) == 8, "the queue does not fill")
            refused = flooding.compile(*modules(1))
            code, reason, metadata, retry_s = failure_of(refused)
            assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "queue")
            assert retry_s > 0
            single = other.compile(*modules(1))
            # The last of the flood makes room for the other caller, and is told.
            eventually(lambda: any(call.done() for call in flood), "nobody makes room")
        header_of(single)
        assert [outcome_of(call) for call in flood].count(EXHAUSTED) == 1
        assert daemon.metric("refused_total", limit="queue") == 2


def test_a_compile_that_has_begun_is_finished_and_stored(lean: Path) -> None:
    begun: list[bytes] = []
    with Daemon(lean, ONE_WORKER) as daemon, Caller(daemon) as caller:

        def begin(module: bytes) -> Any:
            begun.append(module)
            return caller.compile(module)

        job, call = stopped_job(daemon, begin)
        call.cancel()
        eventually(lambda: daemon.metric("calls") == 0, "the call does not end")
        assert daemon.metric("flights") == 1
        os.kill(job, signal.SIGCONT)
        eventually(lambda: daemon.metric("flights") == 0, "the job does not end")
        before = compiled(daemon)
        header_of(caller.compile(wasm.digest(begun[-1])))
        assert compiled(daemon) == before


@pytest.fixture
def two_engines(engines: Installed, tmp_path: Path) -> Path:
    return state_with(tmp_path / "state", ENGINE, OTHER)


def test_what_another_engine_is_asked_about_waits_in_turn_too(two_engines: Path) -> None:
    """A component for an engine without them needs none of its workers, but one of another's."""
    with (
        Daemon(two_engines, [*ONE_WORKER, "--queue-length", "8"]) as daemon,
        Caller(daemon) as flooding,
        Caller(daemon) as other,
    ):

        def refused(caller: Caller, tag: int, name: str = "") -> Any:
            return caller.compile(wasm.empty_component(tag), name=name, engine=OTHER)

        with held_worker(daemon):
            flood = [refused(flooding, tag, "flood") for tag in range(8)]
            eventually(lambda: queued(daemon) == 8, "the flood does not wait")
            code, reason, metadata, retry_s = failure_of(refused(flooding, 8))
            assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "queue")
            assert metadata["engine"] == ENGINE
            assert retry_s > 0
            single = refused(other, 9, "single")
            eventually(
                lambda: any(call.done() for call in flood), "nobody makes room for another caller"
            )
        assert failure_of(single)[1] == "ENGINE_LACKS_FEATURE"
        reasons = sorted(failure_of(call)[1] for call in flood)
        assert reasons == ["COMPILE_QUEUE_FULL"] + ["ENGINE_LACKS_FEATURE"] * 7
        # One of the flood made room, and one or two went before.
        assert answered(daemon, 9, "flood", "single").index("single") <= 3


def test_calls_that_wait_for_another_calls_answer_hold_one_copy_of_their_module(lean: Path) -> None:
    """They stand in no queue: one of them does, for all, with four times what that may hold."""
    module = wasm.with_data(1024 * 1024, tag=1)
    with (
        Daemon(lean, [*ONE_WORKER, "--receive-bytes", "8MiB"]) as daemon,
        Caller(daemon) as flooding,
        Caller(daemon) as other,
    ):
        with held_worker(daemon):
            request = pb.LoadRequest(module=module)
            loads = [flooding.stub.Load.future(request, timeout=120) for _ in range(16)]
            loads.append(other.stub.Load.future(request, timeout=120))
            eventually(lambda: daemon.metric("calls") == 18, "not all have come")
            eventually(lambda: daemon.metric("receive_bytes") == 0, "they hold their requests")
            assert queued(daemon) == 1
        sha256 = wasm.digest(module)
        assert [one.result().sha256 for one in loads] == [sha256] * 17
        assert flooding.stub.Load(request, timeout=120).already_loaded
