"""Several daemons on one Redis compile once for all, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln import AsyncClient, ConnectionFailed
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.callers import Caller, header_of, held_worker, modules, outcome_of, stopped_job
from tests.e2e.daemon import RedisDaemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.processes import eventually, jobs_of
from tests.servers.redis_server import RedisServer

DAEMONS = 4
CALLS = 200
MODULES = 10
ENGINE = "wasmtime-50.0.1"
# Each module keeps wasmer busy for a fifth of a second of CPU, so that all calls meet its compile.
SLOW_ENGINE = "wasmer-1.1.0"


valkey = a_valkey()


@pytest.fixture
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: RedisServer
) -> Iterator[list[RedisDaemon]]:
    """Daemons that share a Redis and keys, and nothing else; each has one engine."""
    environ = {
        "WASMKILN_REDIS_URL": valkey.url,
        # Far longer than a busy machine keeps Redis from answering.
        "WASMKILN_REDIS_TIMEOUT_S": "10",
        "WASMKILN_SHUTDOWN_GRACE_S": "1",
    }
    states = [
        fresh_state(tmp_path / f"d{number}", engines=(request.param,)) for number in range(DAEMONS)
    ]
    with ThreadPoolExecutor(DAEMONS) as threads:
        daemons = list(threads.map(lambda state: RedisDaemon(state, environ=environ), states))
        try:
            yield daemons
        finally:
            list(threads.map(RedisDaemon.end, daemons))


def compiles(*daemons: RedisDaemon) -> int:
    """Return how many compilations of daemons went well."""
    count = 0
    for daemon in daemons:
        with daemon.client() as client:
            made = [each for each in client.stats().compiles if each.outcome == "ok" and each.count]
        assert {each.engine for each in made} <= {ENGINE, SLOW_ENGINE}
        count += sum(each.count for each in made)
    return count


async def call_all(daemons: Sequence[RedisDaemon], round_: int) -> None:
    """Make all calls at once, spread over new modules and daemons; check what each got.

    Who finds its daemon gone asks the next one at once: it does not wait until that is back.
    """
    wanted = [wasm.nested_blocks(15_000, MODULES * round_ + tag) for tag in range(MODULES)]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                AsyncClient(daemon.address, timeout_s=120, max_attempts=1)
            )
            for daemon in daemons
        ]

        async def one(number: int) -> tuple[str, str]:
            for turn in range(len(clients)):
                client = clients[(number + turn) % len(clients)]
                try:
                    module = wanted[number // 4 % MODULES]
                    made = await client.compile(module, engine=SLOW_ENGINE)
                except ConnectionFailed:
                    continue
                return made.header.module_sha256, made.header.artifact_sha256
            raise AssertionError("no daemon is left")

        found = await asyncio.gather(*(one(number) for number in range(CALLS)))
    # For one module all got the same.
    assert len(set(found)) == len(wanted)


@pytest.mark.parametrize("fleet", [SLOW_ENGINE], indirect=True)
async def test_each_module_is_compiled_once_and_no_call_is_lost_whatever_dies(
    fleet: list[RedisDaemon], valkey: RedisServer
) -> None:
    await call_all(fleet, 0)
    assert compiles(*fleet) == MODULES
    calling = asyncio.create_task(call_all(fleet, 1))
    holder = await asyncio.to_thread(first_that_compiles, fleet)
    fleet.remove(holder)
    before = compiles(*fleet)
    holder.kill()
    await asyncio.wait_for(calling, 150)
    # The dead one may have finished some; of the others, none made a module twice.
    assert 0 < compiles(*fleet) - before <= MODULES
    for round_, how in ((2, signal.SIGSTOP), (3, signal.SIGKILL)):
        before = compiles(*fleet)
        calling = asyncio.create_task(call_all(fleet, round_))
        await asyncio.to_thread(first_that_compiles, fleet)
        valkey.process.send_signal(how)
        await asyncio.wait_for(calling, 150)
        assert compiles(*fleet) - before <= MODULES * len(fleet)
        valkey.process.send_signal(signal.SIGCONT)


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


@pytest.mark.parametrize("fleet", [ENGINE], indirect=True)
def test_what_waits_at_one_daemon_is_compiled_by_another(fleet: list[RedisDaemon]) -> None:
    busy, idle, *_ = fleet

    def waiting() -> int:
        return int(busy.metric("queue_depth", engine=ENGINE))

    wanted = modules(5)
    with held_worker(busy), Caller(busy) as first, Caller(idle) as second:
        queued = [first.compile(module) for module in wanted]
        eventually(lambda: waiting() == 5, "the calls do not wait for the worker")
        made = [header_of(second.compile(module)) for module in wanted]
        assert {header.origin for header in made} == {types_pb2.ORIGIN_COMPILED}
        # And whoever waits in the queue is given it as soon as it is there.
        taken = [header_of(call) for call in queued]
        assert {header.origin for header in taken} == {types_pb2.ORIGIN_REDIS}
        assert waiting() == 0
    assert (compiles(busy), compiles(idle)) == (1, 5)
    assert busy.metric("fleet_turns_total", outcome="made") == 5
    # A daemon that ends leaves what it compiles to one other.
    ending, *others = fleet
    before = compiles(*others)
    with ExitStack() as stack:
        ended, *callers = [stack.enter_context(Caller(daemon)) for daemon in fleet]
        asked: list[bytes] = []

        def begin(module: bytes) -> Any:
            asked.append(module)
            return ended.compile(module)

        _, call = stopped_job(ending, begin)
        waits = [caller.compile(asked[-1]) for caller in callers]
        eventually(lambda: all(each.metric("flights") == 1 for each in others), "they do not wait")
        assert ending.stop() == 0
        assert outcome_of(call) is not grpc.StatusCode.OK
        headers = [header_of(wait) for wait in waits]
    assert len({header.artifact_sha256 for header in headers}) == 1
    assert compiles(*others) == before + 1
