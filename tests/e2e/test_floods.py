"""Floods of HTTP/2 frames cost other callers time, and no call; when they end, all is as before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import ENGINE, Caller, failure_of, header_of, modules
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.floods import KINDS, Flood
from tests.e2e.processes import eventually, memory_of
from tests.e2e.programs import Installed
from tests.sizes import size

MIB = 1024 * 1024
FLOOD_S = size(10.0, 1.0)
DEADLINE_S = 5.0
RECOVERY_S = 5.0


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


@dataclass
class Honest:
    """Honest calls: when each was answered, and how long that took."""

    waits: list[tuple[float, float]] = field(default_factory=list)

    def p50_s(self, since_s: float) -> float:
        """Return the median wait of the calls that were answered since then; at least 20."""
        waits = sorted(took_s for at_s, took_s in list(self.waits) if at_s >= since_s)
        return waits[len(waits) // 2] if len(waits) >= 20 else float("inf")


@contextlib.contextmanager
def honest_callers(kiln: Daemon) -> Iterator[Honest]:
    """Call all the while, and fail if a call does, or is not answered in time."""
    over, honest = threading.Event(), Honest()
    with Caller(kiln) as caller, ThreadPoolExecutor(1) as threads:
        digest = header_of(caller.compile(*modules(1))).module_sha256

        def call() -> None:
            while not over.wait(0.01):
                began = time.monotonic()
                assert list(caller.compile(digest, omit_artifact=False, timeout=DEADLINE_S))
                honest.waits.append((time.monotonic(), time.monotonic() - began))

        calling = threads.submit(call)
        try:
            yield honest
        finally:
            over.set()
            calling.result()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_flood_ends_no_call_and_leaves_nothing(kiln: Daemon, kind: str) -> None:
    memory, most = memory_of(kiln.pid), 0
    with honest_callers(kiln) as honest:
        eventually(lambda: len(honest.waits) >= 20, "honest calls are not answered")
        quiet_s = honest.p50_s(0)
        began = time.monotonic()
        while (left := FLOOD_S - (time.monotonic() - began)) > 0:
            with Flood(kiln.address) as flood:
                flood.run(KINDS[kind](flood), rate=50_000, seconds=min(left, 1.0))
            most = max(most, memory_of(kiln.pid) - memory)
        ended = time.monotonic()
        flooded_s = honest.p50_s(began)
        eventually(
            lambda: honest.p50_s(time.monotonic() - 0.5) < 2 * quiet_s + 0.005,
            "it is slower than before",
            timeout_s=RECOVERY_S,
        )
        print(
            f"{kind}: p50 {quiet_s * 1e3:.1f} ms, {flooded_s * 1e3:.1f} ms meanwhile; as before"
            f" after {time.monotonic() - ended:.1f} s; {most / MIB:.0f} MiB more memory"
        )
    assert most < 64 * MIB
    eventually(lambda: kiln.metric("calls") == 0, "calls stay")


def test_honest_callers_in_a_hurry_are_served(kiln: Daemon) -> None:
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

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hurry, range(4)))


def test_large_requests_are_answered(kiln: Daemon) -> None:
    """Three connections send 12 MiB again and again; the daemon refuses all."""

    def send(_: int) -> None:
        with Caller(kiln) as caller:
            for _ in range(5):
                code, reason = failure_of(caller.compile(bytes(12 * MIB)))[:2]
                assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NOT_WASM")

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(send, range(3)))
