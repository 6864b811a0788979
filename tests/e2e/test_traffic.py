"""Callers that send or read slowly, never, too much or too often do not disturb others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import h2.events
import h2.exceptions
import pytest
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
    modules,
    outcome_of,
)
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually, memory_of
from tests.e2e.programs import Installed

MIB = 1024 * 1024
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
FLAGS = [
    *("--redis-url", "none", "--workers", "1", "--max-module-bytes", "48MiB"),
    *("--receive-bytes", "128MiB", "--caller-timeout-s", "2"),
    *("--max-connections", "800"),
]


kiln = serving(ENGINE, flags=FLAGS)
"""A daemon with small budgets."""


@pytest.fixture(scope="module")
def artifact(kiln: Daemon) -> str:
    """The digest of a module whose artifact has 40 MiB."""
    with Caller(kiln) as caller:
        header = header_of(caller.compile(wasm.with_data(40 * MIB, tag=1)))
        assert header.size_bytes > 40 * MIB
        return str(header.module_sha256)


@pytest.fixture(autouse=True)
def unharmed(kiln: Daemon) -> Iterator[None]:
    yield
    with Caller(kiln) as caller:
        assert header_of(caller.compile(*modules(1)))
    assert kiln.process.poll() is None
    assert "call failed" not in kiln.log


def quiet(kiln: Daemon) -> bool:
    held = ("calls", "send_bytes", "send_pinned_bytes", "receive_bytes")
    return all(kiln.metric(name) == 0 for name in held)


def test_500_slow_readers_of_a_large_artifact_take_no_more_than_their_budget(
    kiln: Daemon, artifact: str
) -> None:
    before = memory_of(kiln.pid)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Caller(kiln)) for _ in range(500)]
        calls = [caller.compile(artifact, omit_artifact=False) for caller in slow]
        reader = stack.enter_context(Caller(kiln))
        most = 0
        waits: list[float] = []
        deadline = time.monotonic() + 120
        # From when the first of them begin until the last of them were ended.
        while len(waits) < 3 or kiln.metric("refused_total", limit="send") < 500:
            assert time.monotonic() < deadline, "the slow ones are not ended"
            most = max(most, memory_of(kiln.pid) - before)
            assert kiln.metric("send_bytes") <= 32 * MIB
            began = time.monotonic()
            parts = list(reader.compile(artifact, omit_artifact=False))
            waits.append(time.monotonic() - began)
            assert sum(len(part.chunk) for part in parts) == parts[0].header.size_bytes
        print(
            f"500 slow readers of {parts[0].header.size_bytes / MIB:.0f} MiB:"
            f" {most / MIB:.0f} MiB more memory; reads meanwhile took up to {max(waits):.2f} s"
        )
        # The budget, and what each connection costs gRPC itself.
        assert most < 32 * MIB + 500 * 300 * 1024
        # Those who took nothing for 2 s were told so; who did not take that either was cut off.
        assert {outcome_of(call) for call in calls} <= {EXHAUSTED, grpc.StatusCode.CANCELLED}
    eventually(lambda: quiet(kiln), "something is held for nobody")
    eventually(lambda: memory_of(kiln.pid) - before < 48 * MIB, "memory does not come back")


def test_a_reader_that_stops_and_comes_back_in_time_gets_everything(
    kiln: Daemon, artifact: str
) -> None:
    with Caller(kiln) as caller:
        call = caller.compile(artifact, omit_artifact=False)
        received = 0
        for part in call:
            received += len(part.chunk)
            if received and received < MIB:
                time.sleep(0.5)
        assert received > 40 * MIB


def test_a_request_that_never_arrives_whole_is_ended(kiln: Daemon) -> None:
    with RawCaller(kiln) as caller:
        stream = caller.begin(COMPILE, MIB)
        caller.send(stream, MIB // 2)
        trailers = caller.wait(stream)
        assert trailers["grpc-status"] == str(EXHAUSTED.value[0])
        assert "did not arrive within 2 s" in trailers["grpc-message"]
    eventually(lambda: quiet(kiln), "something is held for nobody")


def test_requests_that_arrive_slowly_take_no_more_than_their_budget(kiln: Daemon) -> None:
    """Ten callers send 40 of 45 MiB each and stop: 400 MiB, if nothing stopped them."""
    before = memory_of(kiln.pid)
    sent, most = 0, 0
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(Caller(kiln))
        callers = [stack.enter_context(RawCaller(kiln)) for _ in range(10)]
        calls = [(caller, caller.begin(COMPILE, 45 * MIB)) for caller in callers]
        for caller, stream in calls:
            sent += caller.send(stream, 40 * MIB, timeout_s=0.5)
            most = max(most, memory_of(kiln.pid) - before)
            # Everybody else's requests arrive as ever.
            assert failure_of(other.compile("0" * 64))[1] == "MODULE_NOT_LOADED"
        print(f"{sent / MIB:.0f} MiB were sent slowly, {most / MIB:.0f} MiB more memory at most")
        assert most < 128 * MIB
        refused = [caller.wait(stream) for caller, stream in calls]
        assert {trailers["grpc-status"] for trailers in refused} == {str(EXHAUSTED.value[0])}
    eventually(lambda: quiet(kiln), "something is held for nobody")


def test_what_is_sent_behind_a_request_that_waits_takes_little_memory(kiln: Daemon) -> None:
    """Twelve calls wait for a worker. Their caller sends 8 MiB more on each, which nobody reads."""
    more, count = bytes(8 * MIB), 12

    def messages() -> Iterator[bytes]:
        yield pb.LoadRequest(module=modules(1)[0]).SerializeToString()
        yield more

    with held_worker(kiln), Caller(kiln) as caller:
        load = caller.channel.stream_unary("/wasmkiln.v1.ModuleService/Load")
        before, most = memory_of(kiln.pid), 0
        calls = [load.future(messages(), timeout=60) for _ in range(count)]
        waits = partial(kiln.metric, "queue_depth", engine=ENGINE)
        eventually(lambda: waits() == count, "the calls do not wait")
        until = time.monotonic() + 2
        while time.monotonic() < until:
            most = max(most, memory_of(kiln.pid) - before)
        for call in calls:
            call.cancel()
        print(f"{most / MIB:.1f} MiB more memory at most")
        assert most < 16 * MIB
    eventually(lambda: quiet(kiln), "something is held for nobody")


def test_a_message_that_unpacks_to_more_is_not_unpacked(kiln: Daemon) -> None:
    before = memory_of(kiln.pid)
    with Caller(kiln) as caller:
        bomb = caller.compile(bytes(120 * MIB), compression=grpc.Compression.Gzip)
        assert outcome_of(bomb) is grpc.StatusCode.UNIMPLEMENTED
    assert memory_of(kiln.pid) - before < 60 * MIB


def test_too_much_metadata_and_what_is_no_message_are_refused(kiln: Daemon) -> None:
    with Caller(kiln) as caller:
        call = caller.compile("0" * 64, metadata=(("x-large", "x" * 20_000),))
        assert outcome_of(call) is EXHAUSTED
        stats = caller.channel.unary_unary("/wasmkiln.v1.ModuleService/Stats")
        with pytest.raises(grpc.RpcError) as failure:
            stats(b"\xff\xff\xff")
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert pb.StatsResponse.FromString(stats(b"")).version


def test_a_connection_has_so_many_calls_and_no_more(kiln: Daemon) -> None:
    with Caller(kiln) as caller, Caller(kiln) as other, held_worker(kiln):
        calls = [caller.compile(module) for module in modules(300)]
        eventually(lambda: kiln.metric("calls") == 257, "they do not begin")  # and the holder's
        assert failure_of(other.compile("0" * 64))[1] == "MODULE_NOT_LOADED"
        assert kiln.metric("calls") == 257
        for call in calls:
            call.cancel()


def test_one_that_pings_without_end_is_sent_away(kiln: Daemon) -> None:
    with RawCaller(kiln) as caller, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
        for _ in range(50):
            caller.ping()
            caller.receive(0.02)
    away = [e for e in caller.events if isinstance(e, h2.events.ConnectionTerminated)]
    assert [event.additional_data for event in away] == [b"too_many_pings"]


def test_slow_readers_keep_nobody_out(engines: Installed, tmp_path: Path) -> None:
    """Two read 30 MiB each at 0.2 MB/s, for minutes; another caller wants 10 MiB meanwhile.

    The artifacts are in memory only while they are sent.
    """
    flags = ["--redis-url", "none", "--max-module-bytes", "48MiB", "--memory-bytes", "0"]
    flags += ["--receive-bytes", "100MiB", "--caller-timeout-s", "20"]
    with contextlib.ExitStack() as stack:
        forgetful = stack.enter_context(Daemon(state_with(tmp_path / "state", ENGINE), flags))
        callers = [stack.enter_context(Caller(forgetful)) for _ in range(2)]
        threads = stack.enter_context(ThreadPoolExecutor(2))

        def trickle(call: Any) -> grpc.StatusCode:
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    time.sleep(0.3)
            code: grpc.StatusCode = call.code()
            return code

        calls = [
            caller.compile(wasm.with_data(30 * MIB, tag=tag), omit_artifact=False)
            for tag, caller in enumerate(callers)
        ]
        trickling = [threads.submit(trickle, call) for call in calls]
        eventually(lambda: forgetful.metric("send_pinned_bytes") > 60 * MIB, "they do not begin")
        other = stack.enter_context(Caller(forgetful))
        small = other.compile(wasm.with_data(10 * MIB, tag=8), omit_artifact=False)
        assert sum(len(part.chunk) for part in small) > 10 * MIB
        assert not any(call.done() for call in calls)
        # More than it would leave free.
        refused = other.compile(wasm.with_data(25 * MIB, tag=9), omit_artifact=False)
        code, reason, metadata, retry_s = failure_of(refused)
        assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "send")
        assert retry_s
        for call in calls:
            call.cancel()
        for each in trickling:
            each.result()
        eventually(lambda: quiet(forgetful), "something is held for nobody")


def test_a_reader_of_a_byte_now_and_then_is_ended(kiln: Daemon, artifact: str) -> None:
    """Each message has its time, and the whole answer has ten times as much: here 20 s."""
    with Caller(kiln) as caller:
        call = caller.compile(artifact, omit_artifact=False)
        began = time.monotonic()
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                time.sleep(1.5)
        assert call.code() is EXHAUSTED
        assert "for 20 s" in call.details()
        assert time.monotonic() - began < 60
