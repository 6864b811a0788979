"""Floods of HTTP/2 frames end with their connection; honest callers lose nothing by it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import ENGINE, Caller, failure_of, header_of, modules
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.floods import KINDS, Flood, processor_s
from tests.e2e.processes import eventually, memory_of
from tests.e2e.programs import Installed
from tests.sizes import size

MIB = 1024 * 1024
FLOOD_S = size(2.0, 0.7)
RESETS = ("resets", "resets-of-nothing", "resets-of-watches", "resets-of-large-headers")
# What gRPC reads as fast as it comes, and never minds.
FRAMES = ("priorities", "window-updates", "ping-acks", "unknown-frames", "goaways", "late-resets")


@pytest.fixture(scope="module")
def kiln(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the limits that it has by default."""
    state = state_with(tmp_path_factory.mktemp("kiln") / "state", ENGINE)
    flags = ["--redis-url", "none", "--workers", "1"]
    with Daemon(state, flags) as daemon:
        yield daemon
    assert daemon.process.returncode == 0
    assert "call failed" not in daemon.log
    assert "Traceback" not in daemon.log


def closed(kiln: Daemon, cause: str) -> float:
    return kiln.metric("connections_closed_total", cause=cause)


@contextlib.contextmanager
def honest_callers(kiln: Daemon) -> Iterator[None]:
    """Call all the while, and fail if a call does."""
    over = threading.Event()
    waits: list[float] = []
    with Caller(kiln) as caller, ThreadPoolExecutor(1) as threads:
        digest = header_of(caller.compile(*modules(1))).module_sha256

        def call() -> None:
            while not over.wait(0.01):
                began = time.monotonic()
                assert list(caller.compile(digest, omit_artifact=False))
                waits.append(time.monotonic() - began)

        calling = threads.submit(call)
        try:
            yield
        finally:
            over.set()
            calling.result()
    waits.sort()
    print(f"honest calls: p50 {waits[len(waits) // 2] * 1e3:.1f} ms, of {len(waits)}")


@pytest.mark.parametrize("kind", RESETS)
def test_who_takes_calls_back_without_end_loses_the_connection(kiln: Daemon, kind: str) -> None:
    before = closed(kiln, "taken_back")
    with honest_callers(kiln), Flood(kiln.address) as flood:
        sent, seconds = flood.run(KINDS[kind](flood), rate=50_000, seconds=30)
        assert seconds < 30, "it is never ended"
        print(f"{kind}: ended after {sent} frames, {seconds:.1f} s")
    eventually(lambda: closed(kiln, "taken_back") > before, "who ended it?")
    kiln.wait_for_log("they flood the daemon")


@pytest.mark.parametrize("kind", FRAMES)
def test_who_sends_frames_that_carry_nothing_loses_the_connection(kiln: Daemon, kind: str) -> None:
    before = closed(kiln, "only_frames")
    with honest_callers(kiln), Flood(kiln.address) as flood:
        sent, seconds = flood.run(KINDS[kind](flood), rate=1e9, seconds=60)
        assert seconds < 60, "it is never ended"
        print(f"{kind}: ended after {sent} frames, {seconds:.1f} s")
    eventually(lambda: closed(kiln, "only_frames") > before, "who ended it?")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {*RESETS, *FRAMES}))
def test_other_floods_cost_the_daemon_little(kiln: Daemon, kind: str) -> None:
    """gRPC ends these floods, refuses what is too much, or reads only as fast as the peer does."""
    memory, spent_s = memory_of(kiln.pid), processor_s(kiln.pid)
    with honest_callers(kiln):
        began = time.monotonic()
        while (left := FLOOD_S - (time.monotonic() - began)) > 0:
            with Flood(kiln.address) as flood:
                flood.run(KINDS[kind](flood), rate=50_000, seconds=left)
        spent_s = processor_s(kiln.pid) - spent_s
    print(f"{kind}: {spent_s / FLOOD_S:.2f} of a processor")
    assert memory_of(kiln.pid) - memory < 64 * MIB
    eventually(lambda: kiln.metric("calls") == 0, "calls stay")


def test_honest_callers_in_a_hurry_keep_their_connections(kiln: Daemon) -> None:
    """A thousand calls on each of four connections, many of them cancelled."""

    def hurry(_: int) -> None:
        with Caller(kiln) as caller:
            stats = caller.channel.unary_unary("/wasmkiln.v1.ModuleService/Stats")
            for _ in range(10):
                calls = [stats.future(b"") for _ in range(100)]
                for call in calls[:10]:
                    call.cancel()
                for call in calls[10:]:
                    assert pb.StatsResponse.FromString(call.result()).version

    before = {cause: closed(kiln, cause) for cause in ("taken_back", "only_frames")}
    # Not within the alert that an earlier flood has left behind.
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hurry, range(4)))
    assert {cause: closed(kiln, cause) for cause in before} == before


def test_large_requests_are_no_flood_of_frames(kiln: Daemon) -> None:
    """Three connections send 12 MiB again and again; the daemon refuses all."""
    before = closed(kiln, "only_frames")

    def send(_: int) -> None:
        with Caller(kiln) as caller:
            for _ in range(15):
                code, reason = failure_of(caller.compile(bytes(12 * MIB)))[:2]
                assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NOT_WASM")

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(send, range(3)))
    assert closed(kiln, "only_frames") == before
