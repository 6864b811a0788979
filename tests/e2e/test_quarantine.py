"""Quarantine in real daemons: all refuse a module that harmed one, until it is released."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkiln import (
    Client,
    CompileMemoryLimit,
    CompilerCrashed,
    CompileTimeout,
    ModuleQuarantined,
)

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.fixtures import a_valkey
from tests.e2e.processes import eventually, jobs_of, kill_job, parent_of, send
from tests.e2e.programs import WASMKILN, run
from tests.servers.redis_server import RedisServer

ENGINE = "wasmer-1.1.0"
# Valid, and for longer than anybody waits.
SLOW = wasm.nested_blocks(1_000_000)
SLOW_COMPONENT = wasm.component(wasm.many_functions(600_000))


valkey = a_valkey(scope="module")


def daemon(folder: Path, url: str, engines: Sequence[str] = ONE_ENGINE, **limits: str) -> Daemon:
    environ = {f"WASMKILN_{name}": value for name, value in limits.items()}
    environ["WASMKILN_REDIS_URL"] = url
    return Daemon(fresh_state(folder, engines=engines), environ=environ)


@pytest.fixture(scope="module")
def two(
    valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, Daemon]]:
    folder = tmp_path_factory.mktemp("two")
    # CPU time runs out at the same point however busy the machine is.
    limits = {"COMPILE_CPU_S": "2", "COMPILE_TIMEOUT_S": "60"}
    with (
        daemon(folder / "a", valkey.url, TWO_ENGINES, **limits) as one,
        daemon(folder / "b", valkey.url, TWO_ENGINES, **limits) as other,
    ):
        yield one, other


@pytest.fixture
def clients(two: tuple[Daemon, Daemon]) -> Iterator[tuple[Client, Client]]:
    with two[0].client(max_attempts=1) as here, two[1].client(max_attempts=1) as there:
        yield here, there


def test_a_timeout_here_is_a_refusal_everywhere_until_it_is_released(
    two: tuple[Daemon, Daemon], clients: tuple[Client, Client]
) -> None:
    here, there = clients
    with pytest.raises(CompileTimeout):
        here.compile(SLOW, engine=ENGINE)
    for client in clients:
        with pytest.raises(ModuleQuarantined) as refused:
            client.compile(SLOW, engine=ENGINE)
        assert refused.value.metadata["first_reason"] == "COMPILE_TIMEOUT"
        assert 590 < float(refused.value.metadata["seconds_left"]) <= 600
        assert "COMPILE_TIMEOUT" in str(refused.value)
        [entry] = client.quarantined().modules
        assert (entry.engine, entry.reason, entry.strikes) == (ENGINE, "COMPILE_TIMEOUT", 1)
        assert client.stats().quarantined_modules == 1
    # A command line as an operator has it.
    at = ("--address", two[1].address)
    assert ENGINE in run(WASMKILN, "quarantine", "ls", *at).stdout
    released = run(WASMKILN, "quarantine", "release", entry.module_sha256, *at)
    assert released.stdout.strip() == "released 1"
    assert not here.quarantined().modules
    with pytest.raises(CompileTimeout):
        here.compile(SLOW, engine=ENGINE)
    # Others were never refused.
    assert there.compile(wasm.adder(1), engine=ENGINE).bytes


@pytest.mark.parametrize("call", ["compile", "load"])
def test_a_job_that_an_operator_kills_condemns_nobody(
    two: tuple[Daemon, Daemon], clients: tuple[Client, Client], call: str
) -> None:
    killed = wasm.nested_blocks(1_000_000, tag=1), wasm.component(wasm.many_functions(600_001))
    module, engine = (killed[0], ENGINE) if call == "compile" else (killed[1], "wasmtime")
    ask = getattr(clients[0], call)
    with ThreadPoolExecutor(1) as callers:
        for _ in range(2):
            slow = callers.submit(ask, module, engine=engine)
            kill_job(two[0].pid)
            with pytest.raises(CompilerCrashed):
                slow.result()
    condemned = {each.module_sha256 for each in clients[0].quarantined().modules}
    assert wasm.digest(module) not in condemned


def test_a_component_that_breaks_its_engine_is_refused_by_load_everywhere(
    clients: tuple[Client, Client],
) -> None:
    """An engine validates a component by compiling it, so each Load costs a compile."""
    here, there = clients
    with pytest.raises(CompileTimeout):
        here.load(SLOW_COMPONENT)
    for client in clients:
        for attempt in (client.load, client.compile):
            with pytest.raises(ModuleQuarantined, match="COMPILE_TIMEOUT"):
                attempt(SLOW_COMPONENT)
    assert there.load(wasm.component(wasm.adder(1))).sha256
    assert here.release(wasm.digest(SLOW_COMPONENT)).released == 1
    with pytest.raises(CompileTimeout):
        there.compile(SLOW_COMPONENT)
    with pytest.raises(ModuleQuarantined):
        here.load(SLOW_COMPONENT)


@pytest.mark.parametrize(
    ("little", "module", "failure"),
    [
        ({"COMPILE_MEMORY_BYTES": "128MiB"}, wasm.many_functions(60_000), CompileMemoryLimit),
        ({"COMPILE_CPU_S": "1"}, wasm.nested_blocks(60_000), CompileTimeout),
    ],
    ids=["memory", "time"],
)
def test_a_daemon_that_grants_less_has_no_module_refused_by_one_that_grants_more(
    tmp_path: Path,
    valkey: RedisServer,
    little: dict[str, str],
    module: bytes,
    failure: type[Exception],
) -> None:
    with (
        daemon(tmp_path / "less", valkey.url, **little) as less,
        daemon(tmp_path / "same", valkey.url, **little) as same,
        daemon(tmp_path / "more", valkey.url) as more,
        less.client(max_attempts=1) as first,
        same.client(max_attempts=1) as second,
        more.client(max_attempts=1) as third,
    ):
        with pytest.raises(failure):
            first.compile(module, engine=ENGINE)
        for client in (first, second):
            with pytest.raises(ModuleQuarantined):
                client.compile(module, engine=ENGINE)
        assert third.compile(module, engine=ENGINE).bytes
        assert third.stats().quarantined_modules == 0


def test_a_job_that_is_stopped_past_its_time_condemns_nobody(
    tmp_path: Path, valkey: RedisServer
) -> None:
    with (
        daemon(tmp_path / "c", valkey.url, COMPILE_TIMEOUT_S="5") as one,
        one.client(max_attempts=1) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        module = wasm.nested_blocks(1_000_000, tag=2)
        for _ in range(2):
            slow = callers.submit(client.compile, module, engine=ENGINE)
            eventually(lambda: len(jobs_of(one.pid)) == 1, "no job started")
            os.kill(stopped := jobs_of(one.pid)[0], signal.SIGSTOP)
            with pytest.raises(CompileTimeout, match="without a CPU"):
                slow.result()
            # It is killed all the same, and its worker goes on.
            eventually(lambda: not parent_of(stopped), "the job is still there")
            assert client.compile(wasm.adder(1), engine=ENGINE).bytes
        assert not client.quarantined().modules


def test_jobs_that_get_no_cpu_beside_each_other_condemn_nobody(
    tmp_path: Path, valkey: RedisServer
) -> None:
    """Strangers cannot have an honest module quarantined by crowding the machine."""
    with (
        daemon(tmp_path / "d", valkey.url, COMPILE_TIMEOUT_S="5", WORKERS="2") as one,
        one.client(max_attempts=1) as client,
        ThreadPoolExecutor(2) as callers,
    ):
        modules = [wasm.nested_blocks(1_000_000, tag=tag) for tag in (3, 4)]
        for _ in range(2):
            calls = [callers.submit(client.compile, each, engine=ENGINE) for each in modules]
            eventually(lambda: len(jobs_of(one.pid)) == 2, "no two jobs started")
            send(signal.SIGSTOP, *jobs_of(one.pid))
            for call in calls:
                with pytest.raises(CompileTimeout):
                    call.result()
        assert not client.quarantined().modules
