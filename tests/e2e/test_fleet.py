"""Several daemons on one Redis compile once for all, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from wasmkiln import Artifact, AsyncClient, ConnectionFailed
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.callers import Caller, header_of, held_worker, modules, outcome_of, stopped_job
from tests.e2e.daemon import RedisDaemon, fresh_state
from tests.e2e.processes import eventually, jobs_of, send
from tests.e2e.programs import Installed
from tests.servers.redis_server import RedisServer, binary_of, redis_server

DAEMONS = 4
CALLS = 200
ENGINE = "wasmtime-50.0.1"
# Each keeps wasmer busy for a fifth of a second of CPU, so that all calls meet its compile.
SLOW_ENGINE = "wasmer-1.1.0"
MODULES = [wasm.nested_blocks(15_000, tag) for tag in range(10)]
of_wasmtime = pytest.mark.parametrize("fleet", [ENGINE], indirect=True, ids=["wasmtime"])
# Far longer than a busy machine keeps a daemon from renewing its lease, or Redis from answering.
PATIENT = {"WASMKILN_REDIS_TIMEOUT_S": "10"}


@pytest.fixture
def valkey(tmp_path: Path, engines: Installed) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running


@pytest.fixture
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: RedisServer
) -> Iterator[list[RedisDaemon]]:
    """Daemons that share a Redis and keys, and nothing else; each has one engine."""
    environ = {
        "WASMKILN_REDIS_URL": valkey.url,
        "WASMKILN_WORKERS": "1",
        **PATIENT,
        "WASMKILN_COMPILE_TIMEOUT_S": "120",
        "WASMKILN_SHUTDOWN_GRACE_S": "1",
    }
    engine = getattr(request, "param", SLOW_ENGINE)
    states = [fresh_state(tmp_path / f"d{number}", engines=(engine,)) for number in range(DAEMONS)]
    with ThreadPoolExecutor(DAEMONS) as threads:
        daemons = list(threads.map(lambda state: RedisDaemon(state, environ=environ), states))
        try:
            yield daemons
        finally:
            list(threads.map(RedisDaemon.end, daemons))


async def call_all(daemons: Sequence[RedisDaemon]) -> list[Artifact]:
    """Make all calls at once, spread over modules and daemons; return what each got.

    Who finds its daemon gone asks the next one, as a client of a fleet does.
    """
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(daemon.address, timeout_s=120))
            for daemon in daemons
        ]

        async def one(number: int) -> Artifact:
            for turn in range(len(clients)):
                client = clients[(number + turn) % len(clients)]
                try:
                    return await client.compile(MODULES[number // 4 % 10], engine=SLOW_ENGINE)
                except ConnectionFailed:
                    continue
            raise AssertionError("no daemon is left")

        return await asyncio.gather(*(one(number) for number in range(CALLS)))


def compiles(daemon: RedisDaemon) -> int:
    """Return how many compilations of a daemon went well."""
    with daemon.client() as client:
        return sum(each.count for each in client.stats().compiles if each.outcome == "ok")


def check(artifacts: Sequence[Artifact]) -> None:
    """Every call got an artifact, and for one module all got the same."""
    assert len(artifacts) == CALLS
    digests = {(one.header.module_sha256, one.header.artifact_sha256) for one in artifacts}
    assert len(digests) == len(MODULES)


async def test_cold_calls_to_all_daemons_compile_each_module_once(fleet: list[RedisDaemon]) -> None:
    check(await call_all(fleet))
    assert sum(map(compiles, fleet)) == len(MODULES)


def test_a_module_with_a_large_artifact_is_there_for_all(
    tmp_path: Path, valkey: RedisServer
) -> None:
    """The write queue has room for the largest of both that the limits accept."""
    environ = {
        "WASMKILN_REDIS_URL": valkey.url,
        "WASMKILN_MAX_MODULE_BYTES": "37MiB",
        "WASMKILN_MAX_ARTIFACT_BYTES": "37MiB",
        "WASMKILN_MEMORY_BYTES": "0",
        **PATIENT,
    }
    large = wasm.with_data(36 * 1024**2, 7)
    states = [fresh_state(tmp_path / f"d{number}", engines=(ENGINE,)) for number in range(2)]
    with (
        RedisDaemon(states[0], environ=environ) as one,
        RedisDaemon(states[1], environ=environ) as other,
        one.client() as client,
        other.client() as elsewhere,
    ):
        made = client.compile(large)
        assert made.header.size_bytes + len(large) > 64 * 1024**2
        eventually(lambda: not client.stats().pending_writes, "its writes are done")
        assert client.stats().dropped_writes == 0
        found = elsewhere.compile(wasm.digest(large))
        assert found.header.origin == types_pb2.ORIGIN_REDIS
        # What is compiled by digest needs the module itself.
        again = elsewhere.compile(wasm.digest(large), settings={"consume_fuel": "true"})
        assert again.header.origin == types_pb2.ORIGIN_COMPILED


async def test_a_holder_that_is_killed_is_replaced_and_every_call_answered(
    fleet: list[RedisDaemon],
) -> None:
    calling = asyncio.create_task(call_all(fleet))
    holder = await asyncio.to_thread(first_that_compiles, fleet)
    holder.kill()
    check(await asyncio.wait_for(calling, 150))
    # The dead one may have finished some; of the others, none made a module twice.
    survivors = [daemon for daemon in fleet if daemon is not holder]
    assert 0 < sum(map(compiles, survivors)) <= len(MODULES)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_redis_lost_in_the_middle_costs_no_call(
    fleet: list[RedisDaemon], valkey: RedisServer, how: signal.Signals
) -> None:
    calling = asyncio.create_task(call_all(fleet))
    await asyncio.to_thread(first_that_compiles, fleet)
    valkey.process.send_signal(how)
    check(await asyncio.wait_for(calling, 150))
    assert sum(map(compiles, fleet)) <= len(MODULES) * DAEMONS


@of_wasmtime
def test_what_stands_in_one_queue_is_compiled_by_a_daemon_with_a_free_worker(
    fleet: list[RedisDaemon],
) -> None:
    busy, idle, *_ = fleet
    wanted = modules(5)
    with held_worker(busy), Caller(busy) as first, Caller(idle) as second:
        queued = [first.compile(module) for module in wanted]
        eventually(lambda: waiting(busy) == 5, "the calls do not wait for the worker")
        made = [header_of(second.compile(module)) for module in wanted]
        assert {header.origin for header in made} == {types_pb2.ORIGIN_COMPILED}
        # And whoever waits in the queue is given it as soon as it is there.
        taken = [header_of(call) for call in queued]
        assert {header.origin for header in taken} == {types_pb2.ORIGIN_REDIS}
        assert waiting(busy) == 0
    assert (compiles(busy), compiles(idle)) == (1, 5)
    assert busy.metric("fleet_turns_total", outcome="made") == 5


@of_wasmtime
def test_a_daemon_that_ends_leaves_what_it_compiles_to_one_other(fleet: list[RedisDaemon]) -> None:
    ending, *others = fleet
    wanted = wasm.many_functions(5_000, tag=-1)
    with ExitStack() as stack:
        ended, *callers = [stack.enter_context(Caller(daemon)) for daemon in fleet]
        call = ended.compile(wanted)
        eventually(lambda: jobs_of(ending.pid), "no job started")
        os.kill(jobs_of(ending.pid)[0], signal.SIGSTOP)
        waits = [caller.compile(wanted) for caller in callers]
        eventually(lambda: [flights(daemon) for daemon in others] == [1, 1, 1], "they do not wait")
        assert ending.stop() == 0
        assert outcome_of(call) is not grpc.StatusCode.OK
        headers = [header_of(wait) for wait in waits]
    assert len({header.artifact_sha256 for header in headers}) == 1
    assert sum(map(compiles, others)) == 1


def test_a_stranger_who_writes_leases_back_holds_no_call_for_long(
    tmp_path: Path, valkey: RedisServer
) -> None:
    """No longer than a compile may take, and a lease; then the daemon compiles alone."""
    environ = {
        "WASMKILN_REDIS_URL": valkey.url,
        "WASMKILN_WORKERS": "1",
        "WASMKILN_COMPILE_TIMEOUT_S": "10",
    }
    states = [fresh_state(tmp_path / name, engines=(ENGINE,)) for name in ("dies", "waits")]
    with (
        RedisDaemon(states[0], environ=environ) as dies,
        RedisDaemon(states[1], environ=environ) as waits,
        redis.Redis.from_url(valkey.url) as direct,
        Caller(dies) as first,
        Caller(waits) as second,
    ):
        asked: list[bytes] = []

        def begin(module: bytes) -> Any:
            asked.append(module)
            return first.compile(module)

        job, _ = stopped_job(dies, begin)
        pattern = f"*{wasm.digest(asked[-1])}*"
        copies: set[tuple[bytes, Any]] = set()
        for _ in range(40):  # Two seconds: a lease is renewed meanwhile.
            copies |= {(name, direct.get(name)) for name in direct.scan_iter(pattern)}
            time.sleep(0.05)
        assert copies
        dies.kill()
        send(signal.SIGCONT, job)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(header_of, second.compile(asked[-1]))
            while not answer.done():
                for name, value in copies:
                    if value is not None:
                        direct.set(name, value)
                    time.sleep(0.05)
        assert answer.result().origin == types_pb2.ORIGIN_COMPILED


def waiting(daemon: RedisDaemon) -> int:
    """Return how many jobs of a daemon wait for a worker."""
    return int(daemon.metric("queue_depth", engine=ENGINE))


def flights(daemon: RedisDaemon) -> int:
    """Return how many compilations a daemon has under way, waiting for others included."""
    return int(daemon.metric("flights"))


def first_that_compiles(daemons: Sequence[RedisDaemon]) -> RedisDaemon:
    """Wait until a worker has a job; return whose.

    Daemons are not asked: they are busy with all the calls, and the jobs may be over by then.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for daemon in daemons:
            if jobs_of(daemon.pid):
                return daemon
    raise AssertionError("nobody compiles")
