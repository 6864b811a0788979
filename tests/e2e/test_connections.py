"""Connections are limited, and who holds them ends no call of others."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.callers import ENGINE, Caller, failure_of, outcome_of
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.floods import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    frame,
    request_headers,
)
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LOAD = "/wasmkiln.v1.ModuleService/Load"
OPENING = PREFACE + frame(SETTINGS, 0, 0)
WATCHING = OPENING + frame(HEADERS, END_HEADERS, 1, request_headers(WATCH))
WATCHING += frame(DATA, END_STREAM, 1, bytes(5))
HALF_SENT = OPENING + frame(HEADERS, END_HEADERS, 1, request_headers(LOAD))
HALF_SENT += frame(DATA, 0, 1, b"\0\0\0\x10\0half")


def daemon_with(path: Path, *flags: str) -> Daemon:
    flags = ("--redis-url", "none", "--workers", "1", *flags)
    return Daemon(state_with(path / "state", ENGINE), flags)


def gets_in(daemon: Daemon, address: str = "") -> bool:
    with Caller(daemon, address) as caller:
        code = outcome_of(caller.compile("0" * 64, timeout=60))
    return bool(code is grpc.StatusCode.NOT_FOUND)


def watching(caller: Caller) -> Any:
    """Begin a call that lasts as long as its connection does; return when it has an answer."""
    watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest())
    next(watch)
    return watch


def connect(address: str, count: int, opening: bytes) -> list[socket.socket]:
    """Open connections that send ``opening`` and nothing more."""
    host, _, port = address.rpartition(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 500), hard))
    opened = []
    for _ in range(count):
        one = socket.create_connection((host, int(port)))
        with contextlib.suppress(OSError):  # It was one too many.
            one.sendall(opening)
        opened.append(one)
    return opened


@pytest.mark.parametrize("opening", [OPENING, WATCHING, HALF_SENT], ids=["idle", "watch", "half"])
def test_who_holds_all_connections_ends_no_call_of_others(
    engines: Installed, tmp_path: Path, opening: bytes
) -> None:
    """New connections wait until it goes; calls on those that are open are answered."""
    with daemon_with(tmp_path) as daemon, Caller(daemon) as caller:
        assert outcome_of(caller.compile("0" * 64)) is grpc.StatusCode.NOT_FOUND
        held = connect(daemon.address, 1_100, opening)
        for _ in range(20):
            assert outcome_of(caller.compile("0" * 64, timeout=5)) is grpc.StatusCode.NOT_FOUND
            assert caller.channel.unary_unary(CHECK)(b"", timeout=5)
        for one in held:
            one.close()
        eventually(lambda: gets_in(daemon), "others stay shut out")
        assert "call failed" not in daemon.log


def test_watches_leave_room_for_probes_and_are_counted(engines: Installed, tmp_path: Path) -> None:
    with daemon_with(tmp_path) as daemon, contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(daemon)) for _ in range(5)]
        watches: list[Any] = []
        while not watches or not watches[-1].done():
            assert len(watches) < 1_024
            stub = health_pb2_grpc.HealthStub(callers[len(watches) // 250].channel)
            watches.append(stub.Watch(health_pb2.HealthCheckRequest()))
            with contextlib.suppress(grpc.RpcError):
                next(watches[-1])
        code, reason, metadata, retry_s = failure_of(watches[-1])
        assert (code, reason, metadata["limit"]) == (EXHAUSTED, "COMPILE_QUEUE_FULL", "calls")
        assert retry_s
        assert len(watches) > 500
        with Caller(daemon) as caller:
            stub = health_pb2_grpc.HealthStub(caller.channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        assert daemon.metric("calls") == 0
        assert daemon.metric("rpcs_total", method=WATCH, code="RESOURCE_EXHAUSTED") == 1


def test_an_address_of_its_own_is_not_reached_by_the_others_callers(
    engines: Installed, tmp_path: Path
) -> None:
    flags = ("--max-connections", "4", "--listen", "127.0.0.1:0")
    with daemon_with(tmp_path, *flags) as daemon, contextlib.ExitStack() as stack:
        first, second = daemon.addresses
        watch = watching(stack.enter_context(Caller(daemon, second)))
        held = connect(first, 4, OPENING)
        shut_out = stack.enter_context(Caller(daemon, first))
        assert outcome_of(shut_out.compile("0" * 64)) is grpc.StatusCode.UNAVAILABLE
        assert gets_in(daemon, second)
        assert not watch.done()
        for one in held:
            one.close()
        eventually(lambda: gets_in(daemon, first), "others stay shut out")
