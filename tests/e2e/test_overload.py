"""More work than workers: which calls wait, which are refused, and which jobs are dropped."""

from __future__ import annotations

import itertools
import json
import os
import signal
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

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
from tests.e2e.daemon import Daemon
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually

# At debug the log has a line for each call, however many there are in a second.
ONE_WORKER = [
    *("--workers", "1", "--redis-url", "none", "--compile-timeout-s", "120"),
    *("--log-level", "debug"),
]
OTHER = "wasmer-1.1.0"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_tags = itertools.count()


def answered(daemon: Daemon, count: int, *names: str) -> list[str]:
    """Return the names of ``count`` calls or more, in the order in which they were answered."""

    def order() -> list[str]:
        lines = [json.loads(line) for line in list(daemon.log_lines)]
        ids = [line["request_id"] for line in lines if line["event"] == "call"]
        return [name for name in ids if name in names]

    eventually(lambda: len(order()) >= count, "the log does not tell of all calls")
    return order()


kiln = serving(ENGINE, flags=[*ONE_WORKER, "--receive-bytes", "8MiB"])
"""A daemon with one worker, and little room for requests."""


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
    assert "single" in answered(kiln, 3, "flood", "single")[:3]


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


def test_a_compile_that_has_begun_is_finished_and_stored(kiln: Daemon) -> None:
    begun: list[bytes] = []
    with Caller(kiln) as caller:

        def begin(module: bytes) -> Any:
            begun.append(module)
            return caller.compile(module)

        job, call = stopped_job(kiln, begin)
        call.cancel()
        eventually(lambda: kiln.metric("calls") == 0, "the call does not end")
        assert kiln.metric("flights") == 1
        os.kill(job, signal.SIGCONT)
        eventually(lambda: kiln.metric("flights") == 0, "the job does not end")
        before = compiled(kiln)
        header_of(caller.compile(wasm.digest(begun[-1])))
        assert compiled(kiln) == before


narrow = serving(ENGINE, OTHER, flags=[*ONE_WORKER, "--queue-length", "8"])
"""A daemon with two engines and a short queue."""


@pytest.mark.parametrize("answer", ["OK", "ENGINE_LACKS_FEATURE"])
def test_a_full_queue_refuses_and_lets_another_caller_in(narrow: Daemon, answer: str) -> None:
    """Also with components for an engine without them: they need a worker of another engine."""
    refusals = narrow.metric("refused_total", limit="queue")
    with Caller(narrow) as flooding, Caller(narrow) as other:

        def begin(caller: Caller, name: str) -> Any:
            if answer == "OK":
                return caller.compile(*modules(1), name=name)
            return caller.compile(wasm.empty_component(next(_tags)), name=name, engine=OTHER)

        flood_name, single_name = f"flood-{answer}", f"single-{answer}"
        with held_worker(narrow):
            flood = [begin(flooding, flood_name) for _ in range(8)]
            eventually(lambda: queued(narrow) == 8, "the queue does not fill")
            code, reason, metadata, retry_s = failure_of(begin(flooding, ""))
            assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "queue")
            assert metadata["engine"] == ENGINE
            assert retry_s > 0
            single = begin(other, single_name)
            # The last of the flood makes room for the other caller, and is told.
            eventually(lambda: any(call.done() for call in flood), "nobody makes room")
        ends = sorted(reason_of(call) for call in (single, *flood))
        assert ends == sorted(["COMPILE_QUEUE_FULL", *[answer] * 8])
        assert reason_of(single) == answer
        # One of the flood made room, and one or two went before.
        assert answered(narrow, 9, flood_name, single_name).index(single_name) <= 3
    assert narrow.metric("refused_total", limit="queue") == refusals + 2


def reason_of(call: Any) -> str:
    """Wait for a call's end; return why it failed, or OK."""
    return "OK" if outcome_of(call) is grpc.StatusCode.OK else failure_of(call)[1]


def test_a_hundred_cold_calls_make_one_compile(kiln: Daemon) -> None:
    [module] = modules(1)
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(kiln)) for _ in range(100)]
        with held_worker(kiln):
            before = compiled(kiln)
            calls = [caller.compile(module) for caller in callers]
            eventually(lambda: kiln.metric("calls") == 101, "not all have come")
        headers = [header_of(call) for call in calls]
    assert compiled(kiln) == before + 2
    assert len({header.artifact_sha256 for header in headers}) == 1
    origins = [header.origin for header in headers]
    assert origins.count(types_pb2.ORIGIN_COMPILED) == 1
    assert origins.count(types_pb2.ORIGIN_JOINED_FLIGHT) == 99


def test_calls_that_wait_for_another_calls_answer_hold_one_copy_of_their_module(
    kiln: Daemon,
) -> None:
    """They stand in no queue: one of them does, for all, with four times what that may hold."""
    module, daemon = wasm.with_data(1024 * 1024, tag=1), kiln
    with Caller(daemon) as flooding, Caller(daemon) as other:
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
