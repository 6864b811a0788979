"""A tenant floods the daemon; the other tenant's calls succeed, and it keeps what it has."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wasmkiln import Client, WasmkilnError
from wasmkiln.v1.types_pb2 import Origin

from tests.e2e import wasm
from tests.e2e.processes import eventually
from tests.e2e.tenancy import House, house
from tests.servers.redis_server import binary_of, redis_server

MEMORY, COMPILED = Origin.ORIGIN_MEMORY, Origin.ORIGIN_COMPILED
HOT = [wasm.constant(number) for number in range(20)]
THREADS = 6
ROUNDS = 30


@pytest.fixture
def tenants(tmp_path: Path, engines: object) -> Iterator[House]:
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as server,
        house(
            tmp_path / "state",
            REDIS_URL=server.url,
            WORKERS="1",
            MEMORY_BYTES="12MiB",
            HOST_STORE_BYTES="48MiB",
            QUEUE_LENGTH="8",
        ) as running,
    ):
        yield running


def compile_others(client: Client, number: int) -> None:
    client.compile(wasm.many_functions(3000, 1000 + number))


def upload_large_modules(client: Client, number: int) -> None:
    client.load(wasm.with_data(2_000_000, number))


def evict_everything(client: Client, number: int) -> None:
    client.compile(wasm.constant(10_000 + number))
    client.evict(everything=True)


def guess(client: Client, number: int) -> None:
    client.find_missing([wasm.digest(HOT[number % len(HOT)])] * 100)
    client.release(everything=True)
    client.compile(wasm.digest(HOT[number % len(HOT)]))


@contextlib.contextmanager
def flood(
    tenants: House, who: str, act: Callable[[Client, int], None]
) -> Iterator[Callable[[], int]]:
    """Have a tenant do ``act`` in several threads; yield what tells how often it did."""
    numbers, stop, done = itertools.count(), threading.Event(), itertools.count()
    finished = [0]

    def run(client: Client) -> None:
        while not stop.is_set():
            with contextlib.suppress(WasmkilnError):  # Its own calls may be refused.
                act(client, next(numbers))
            finished[0] = next(done) + 1

    clients = [tenants.client(who, max_attempts=1) for _ in range(THREADS)]
    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield lambda: finished[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "act", [compile_others, upload_large_modules, evict_everything, guess], ids=lambda f: f.__name__
)
def test_a_flood_of_one_tenant_costs_another_no_call_and_no_hit(
    tenants: House, act: Callable[[Client, int], None]
) -> None:
    victim = tenants.client("a")
    for module in HOT:
        victim.compile(module)
    with flood(tenants, "b", act) as finished:
        eventually(lambda: finished() >= THREADS, "the flood has begun", timeout_s=120)
        for number in range(ROUNDS):
            module = HOT[number % len(HOT)]
            assert victim.compile(wasm.digest(module)).header.origin == MEMORY
            if number % 10 == 0:
                # A new module waits for its turn, and is compiled.
                assert victim.compile(wasm.constant(500 + number)).header.origin == COMPILED
    [memory] = [tier for tier in victim.stats().tiers if tier.tier == "memory"]
    assert memory.evictions == 0
    assert not victim.quarantined().modules
    assert not victim.find_missing([wasm.digest(module) for module in HOT])
