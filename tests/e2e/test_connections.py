"""Connections are limited, and nobody can keep others out by holding them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.callers import ENGINE, Caller, failure_of, held_worker, modules, outcome_of
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


@pytest.fixture
def tight(engines: Installed, tmp_path: Path) -> Iterator[Daemon]:
    with daemon_with(tmp_path, "--max-connections", "8") as daemon:
        yield daemon
    assert "call failed" not in daemon.log


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
def test_1100_connections_shut_nobody_out(
    engines: Installed, tmp_path: Path, opening: bytes
) -> None:
    with daemon_with(tmp_path) as daemon:
        held = connect(daemon.address, 1_100, opening)
        eventually(lambda: gets_in(daemon), "others are shut out")
        with Caller(daemon) as caller:  # for good, not by chance
            for _ in range(20):
                assert outcome_of(caller.compile("0" * 64, wait_for_ready=True, timeout=20))
        for one in held:
            one.close()
        assert "call failed" not in daemon.log


def test_idle_connections_make_way_first(tight: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(tight)) for _ in range(8)]
        idle = callers[5:]
        for caller in idle:
            assert outcome_of(caller.compile("0" * 64)) is grpc.StatusCode.NOT_FOUND
        watches = [watching(caller) for caller in callers[:5]]
        eventually(lambda: gets_in(tight), "idle connections stay")
        tight.wait_for_log("hardly any were left")
        assert not any(watch.done() for watch in watches)
        assert tight.metric("connections_closed_total", cause="no_room") > 0
        for caller in idle:  # Whoever lost one opens another, if there is room.
            code = outcome_of(caller.compile("0" * 64, wait_for_ready=True))
            assert code is grpc.StatusCode.NOT_FOUND


def test_then_the_oldest_watch_makes_way_and_is_told_why(tight: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(tight)) for _ in range(8)]
        watches = [watching(caller) for caller in callers]
        code, reason, metadata, retry_s = failure_of(watches[0])
        assert (code, reason) == (EXHAUSTED, "COMPILE_QUEUE_FULL")
        assert metadata["limit"] == "connections"
        assert retry_s
        eventually(lambda: gets_in(tight), "watches keep others out")
        assert not watches[-1].done()


def test_connections_for_which_the_daemon_works_stay_while_others_only_watch(
    tight: Daemon,
) -> None:
    with contextlib.ExitStack() as stack:
        working = [stack.enter_context(Caller(tight)) for _ in range(3)]
        with held_worker(tight):
            calls = [caller.compile(*modules(1)) for caller in working]
            eventually(lambda: tight.metric("calls") == 4, "they do not begin")
            watches = [watching(stack.enter_context(Caller(tight))) for _ in range(4)]
            eventually(lambda: watches[0].done(), "no watch makes way")
            for _ in range(3):
                eventually(lambda: gets_in(tight), "watches keep others out")
            assert not any(call.done() for call in calls)
        for call in calls:
            assert outcome_of(call) is grpc.StatusCode.OK


def test_even_connections_that_all_work_keep_nobody_out(tight: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(tight)) for _ in range(7)]
        # The worker's holder has waited longest, and is what makes way.
        with contextlib.suppress(grpc.RpcError), held_worker(tight):
            calls = [caller.compile(*modules(1)) for caller in callers[1:]]
            eventually(lambda: tight.metric("calls") == 7, "they do not begin")
            calls.append(callers[0].compile(*modules(1)))
            assert '"working": 1' in tight.wait_for_log("hardly any were left")
            eventually(lambda: gets_in(tight), "connections that work keep others out")
            assert not any(call.done() for call in calls)
        assert {outcome_of(call) for call in calls} == {grpc.StatusCode.OK}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can call as somebody else")
def test_on_loopback_another_user_gives_its_connections_first(tight: Daemon) -> None:
    host, _, port = tight.address.rpartition(":")
    program = (
        "import socket, sys\n"
        "held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(5)]\n"
        "for one in held:\n"
        "    try: one.sendall(bytes.fromhex(sys.argv[3]))\n"
        "    except OSError: pass\n"
        "print('connected', flush=True)\n"
        "sys.stdin.read()\n"
    )
    # Not Popen's user=: it forks, which gRPC's threads in this process do not survive.
    somebody_else = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with contextlib.ExitStack() as stack:
        mine = [watching(stack.enter_context(Caller(tight))) for _ in range(3)]
        other = stack.enter_context(
            subprocess.Popen(
                [*somebody_else, "/usr/bin/python3", "-c", program, host, port, WATCHING.hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert other.stdout
        assert other.stdout.readline() == "connected\n"
        line = tight.wait_for_log("hardly any were left")
        assert "user 65534 of this machine" in line
        for _ in range(3):
            eventually(lambda: gets_in(tight), "others are shut out")
        assert not any(watch.done() for watch in mine)
        other.kill()


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
        eventually(lambda: gets_in(daemon, first), "idle connections stay")
        assert not watch.done()
        for one in held:
            one.close()
