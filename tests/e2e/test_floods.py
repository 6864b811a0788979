"""Floods and crowds cost other callers time, and no call; when they end, all is as before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import ENGINE, Caller, failure_of, header_of, modules, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.floods import CROWDS, KINDS, OPENING, flood, over_tcp, strangers
from tests.e2e.processes import eventually, memory_of
from tests.e2e.programs import Installed
from tests.sizes import size

MIB = 1024 * 1024
FLOOD_S = size(10.0, 1.0)
DEADLINE_S = 5.0
RECOVERY_S = 5.0
CROWD = 1_100
"""More connections than there may be."""
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND


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
    """Call and probe all the while, and fail if a call does, or is not answered in time."""
    over, honest = threading.Event(), Honest()
    with Caller(kiln) as caller, ThreadPoolExecutor(1) as threads:
        digest = header_of(caller.compile(*modules(1))).module_sha256
        health = health_pb2_grpc.HealthStub(caller.channel)

        def call() -> None:
            while not over.wait(0.01):
                began = time.monotonic()
                assert list(caller.compile(digest, omit_artifact=False, timeout=DEADLINE_S))
                honest.waits.append((time.monotonic(), time.monotonic() - began))
                assert health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S).status

        calling = threads.submit(call)
        try:
            eventually(lambda: len(honest.waits) >= 20, "honest calls are not answered")
            yield honest
        finally:
            over.set()
            calling.result()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() | CROWDS.keys()))
def test_a_flood_ends_no_call_and_leaves_nothing(kiln: Daemon, kind: str) -> None:
    """Of frames of one kind, or of connections, among which new ones of others wait."""
    memory, most = memory_of(kiln.pid), 0
    with honest_callers(kiln) as honest:
        quiet_s, began = honest.p50_s(0), time.monotonic()
        with contextlib.ExitStack() as stack:
            if kind in CROWDS:
                crowd = strangers(over_tcp(kiln.address), CROWDS[kind], CROWD, reads=True)
                stack.enter_context(crowd)
            while time.monotonic() - began < FLOOD_S or honest.p50_s(began) > DEADLINE_S:
                if kind in KINDS:
                    assert flood(kiln.address, kind, 1.0)[kind]
                most = max(most, memory_of(kiln.pid) - memory)
                time.sleep(0.05)
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
    eventually(lambda: gets_in(kiln), "others stay shut out")


def gets_in(daemon: Daemon, address: str = "") -> bool:
    with Caller(daemon, address) as caller:
        return outcome_of(caller.compile("0" * 64, timeout=60)) is NOT_FOUND


def test_watches_leave_room_for_probes_and_are_counted(kiln: Daemon) -> None:
    counted = {"method": "/grpc.health.v1.Health/Watch", "code": EXHAUSTED.name}
    refused = kiln.metric("rpcs_total", **counted)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(kiln)) for _ in range(5)]
        watches: list[Any] = []
        while not watches or not watches[-1].done():
            assert len(watches) < 1_024
            watches.append(watching(callers[len(watches) // 250]))
        code, reason, metadata, retry_s = failure_of(watches[-1])
        assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "calls")
        assert retry_s
        assert len(watches) > 500
        with Caller(kiln) as caller:
            stub = health_pb2_grpc.HealthStub(caller.channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        assert kiln.metric("calls") == 0
        assert kiln.metric("rpcs_total", **counted) == refused + 1


def watching(caller: Caller) -> Any:
    """Begin a call that lasts as long as its connection does, unless it is refused."""
    watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest())
    with contextlib.suppress(grpc.RpcError):
        next(watch)
    return watch


def test_an_address_of_its_own_is_not_reached_by_the_others_callers(
    engines: Installed, tmp_path: Path
) -> None:
    flags = ("--redis-url", "none", "--max-connections", "4", "--listen", "127.0.0.1:0")
    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon:
        first, second = daemon.addresses
        with Caller(daemon, second) as caller, Caller(daemon, first) as shut_out:
            watch = watching(caller)
            with strangers(over_tcp(first), OPENING, 4):
                refused = outcome_of(shut_out.compile("0" * 64))
                assert refused is grpc.StatusCode.UNAVAILABLE
                assert gets_in(daemon, second)
                assert not watch.done()
        eventually(lambda: gets_in(daemon, first), "others stay shut out")


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
