"""Floods and crowds cost other callers time, and no call; when they end, all is as before."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import ENGINE, Caller, failure_of, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.fixtures import serving
from tests.e2e.floods import OPENING, over_tcp, strangers
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

"""More connections than there may be."""
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND


kiln = serving(ENGINE, flags=["--redis-url", "none"])
"""A daemon with the limits that it has by default."""


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
