"""More work than workers: which calls wait, which are refused, and which jobs are dropped."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
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
)
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.processes import eventually, jobs_of, workers_of
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


def refused_for_its_deadline(
    call: Callable[[float], Any],
) -> tuple[float, tuple[str, dict[str, str], float]]:
    """Call with short deadlines until the daemon refuses one; return that, and the refusal.

    The job that runs stands still, and is expected to take as long again as it is late by now. A
    caller may give up before the daemon tells it so; on a slow machine it often does.
    """
    for timeout_s in (0.05, *[0.4] * 20, *[2.0] * 20):
        code, reason, metadata, retry_s = failure_of(call(timeout_s))
        if code is EXHAUSTED:
            return timeout_s, (reason, metadata, retry_s)
    raise AssertionError("no deadline is too near")


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


def test_a_call_whose_deadline_cannot_be_met_is_refused_at_once(kiln: Daemon) -> None:
    with Caller(kiln) as flooding, Caller(kiln) as other, held_worker(kiln):
        flood = [flooding.compile(module) for module in modules(20)]
        eventually(lambda: queued(kiln) == 20, "the flood does not wait")
        timeout_s, (reason, metadata, retry_s) = refused_for_its_deadline(
            lambda timeout_s: other.compile(*modules(1), timeout=timeout_s)
        )
        assert (reason, metadata["limit"]) == ("COMPILE_QUEUE_FULL", "deadline")
        assert retry_s > timeout_s
        patient = other.compile(*modules(1), timeout=120)
        eventually(lambda: queued(kiln) == 21, "who has time is refused too")
        for one in (*flood, patient):
            one.cancel()
        eventually(lambda: queued(kiln) == 0, "abandoned calls still wait")


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


def test_a_full_queue_refuses_with_the_real_wait_and_lets_another_caller_in(lean: Path) -> None:
    with (
        Daemon(lean, [*ONE_WORKER, "--queue-length", "8"]) as daemon,
        Caller(daemon) as flooding,
        Caller(daemon) as other,
    ):
        # It learns how long such modules take, here and now.
        learned = [header_of(flooding.compile(wasm.many_functions(2500, n))) for n in range(1, 5)]
        took_s = [header.compile_time.ToTimedelta().total_seconds() for header in learned]
        began = time.monotonic()
        with held_worker(daemon):
            flood = [flooding.compile(wasm.many_functions(2500, 10 + n)) for n in range(8)]
            eventually(lambda: queued(daemon) == 8, "the queue does not fill")
            refused = flooding.compile(wasm.many_functions(2500, 30))
            code, reason, metadata, retry_s = failure_of(refused)
            held_s = time.monotonic() - began
            assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "queue")
            single = other.compile(wasm.many_functions(2500, 31))
            # The last of the flood makes room for the other caller, and is told.
            eventually(lambda: any(call.done() for call in flood), "nobody makes room")
        header_of(single)
        assert [outcome_of(call) for call in flood].count(EXHAUSTED) == 1
        assert daemon.metric("refused_total", limit="queue") == 2
        print(
            f"told to wait {retry_s:.2f} s; such modules took {took_s} s; held for {held_s:.2f} s"
        )
        # Eight jobs, and what is left of the one that runs: at most as long as it ran, or twice
        # what such a module takes.
        assert 8 * min(took_s) / 2 < retry_s < 8 * max(took_s) * 2 + held_s + 4 * max(took_s)


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

        def refused(caller: Caller, tag: int, name: str = "", timeout_s: float = 120) -> Any:
            component = wasm.empty_component(tag)
            return caller.compile(component, name=name, engine=OTHER, timeout=timeout_s)

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
            _, (reason, metadata, _) = refused_for_its_deadline(
                lambda timeout_s: refused(other, 10, timeout_s=timeout_s)
            )
            assert (reason, metadata["limit"]) == ("COMPILE_QUEUE_FULL", "deadline")
        assert failure_of(single)[1] == "ENGINE_LACKS_FEATURE"
        reasons = sorted(failure_of(call)[1] for call in flood)
        assert reasons == ["COMPILE_QUEUE_FULL"] + ["ENGINE_LACKS_FEATURE"] * 7
        # One of the flood made room, and one or two went before.
        assert answered(daemon, 9, "flood", "single").index("single") <= 3


def test_modules_are_bounded_also_where_calls_wait_for_another_calls_answer(lean: Path) -> None:
    """They stand in no queue: one of them does, for all."""
    module = wasm.with_data(1024 * 1024, tag=1)
    with (
        Daemon(lean, [*ONE_WORKER, "--queue-bytes", "4MiB"]) as daemon,
        Caller(daemon) as flooding,
        Caller(daemon) as other,
    ):
        with held_worker(daemon):
            request = pb.LoadRequest(module=module)
            loads = [flooding.stub.Load.future(request, timeout=120) for _ in range(12)]
            eventually(lambda: sum(load.done() for load in loads) == 8, "too few are refused")
            assert queued(daemon) == 1
            refused = [load for load in loads if load.done()]
            assert {load.code() for load in refused} == {EXHAUSTED}
            assert daemon.metric("refused_total", limit="queue") == 8
            loads.append(other.stub.Load.future(request, timeout=120))
            eventually(lambda: daemon.metric("calls") == 6, "the other caller has not come")
        sha256 = wasm.digest(module)
        assert [one.result().sha256 for one in loads if one not in refused] == [sha256] * 5
        assert flooding.stub.Load(request, timeout=120).already_loaded


@pytest.mark.parametrize("policy", ["yield", "kill"])
def test_running_work_that_nobody_waits_for_can_be_ended(lean: Path, policy: str) -> None:
    with (
        Daemon(lean, [*ONE_WORKER, "--abandoned-compiles", policy]) as daemon,
        Caller(daemon) as caller,
    ):
        workers = workers_of(daemon.pid)
        call = caller.compile(wasm.many_functions(20_000))
        eventually(lambda: len(jobs_of(daemon.pid)) == 1, "no job started")
        [job] = jobs_of(daemon.pid)
        os.kill(job, signal.SIGSTOP)  # It would never end by itself.
        call.cancel()
        if policy == "yield":
            # Nobody waits for its worker, so it may go on.
            eventually(lambda: daemon.metric("flights") == 1, "it was ended")
            assert jobs_of(daemon.pid) == [job]
        header_of(caller.compile(*modules(1)))
        eventually(lambda: not Path(f"/proc/{job}").exists(), "the job is left")
        assert abandoned(daemon, "running") == 1
        assert daemon.metric("compiles_total", engine=ENGINE, outcome="ok") == 1
        assert workers_of(daemon.pid) == workers  # The job was killed, its worker was not.
