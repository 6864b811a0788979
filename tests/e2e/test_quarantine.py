"""Quarantine in real daemons: all refuse a module that harmed one, until it is released."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkiln import CompilerCrashed, CompileTimeout, ModuleQuarantined

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.processes import busy_job, eventually, jobs_of, parent_of
from tests.e2e.programs import WASMKILN, Installed
from tests.servers.redis_server import binary_of, redis_server

ENGINE = "wasmer-1.1.0"
# Valid, and for longer than anybody waits.
SLOW = wasm.nested_blocks(1_000_000)
SLOW_COMPONENT = wasm.component(wasm.many_functions(600_000))


@pytest.fixture
def valkey(tmp_path: Path, engines: Installed) -> Iterator[str]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield running.url


def daemon(
    tmp_path: Path, name: str, url: str, engines: Sequence[str] = ONE_ENGINE, **limits: str
) -> Daemon:
    # CPU time runs out at the same point however busy the machine is.
    limits = {"COMPILE_TIMEOUT_S": "60", **limits}
    environ = {
        "WASMKILN_REDIS_URL": url,
        "WASMKILN_WORKERS": "1",
        **{f"WASMKILN_{name}": value for name, value in limits.items()},
    }
    return Daemon(fresh_state(tmp_path / name, engines=engines), environ=environ)


def test_a_timeout_here_is_a_refusal_everywhere_until_it_is_released(
    tmp_path: Path, valkey: str
) -> None:
    with (
        daemon(tmp_path, "a", valkey, COMPILE_CPU_S="1") as one,
        daemon(tmp_path, "b", valkey, COMPILE_CPU_S="1") as two,
        one.client() as here,
        two.client() as there,
    ):
        with pytest.raises(CompileTimeout):
            here.compile(SLOW, engine=ENGINE)
        for client in (here, there):
            with pytest.raises(ModuleQuarantined) as refused:
                client.compile(SLOW, engine=ENGINE)
            assert refused.value.metadata["first_reason"] == "COMPILE_TIMEOUT"
            assert 590 < float(refused.value.metadata["seconds_left"]) <= 600
            assert "COMPILE_TIMEOUT" in str(refused.value)
            [entry] = client.quarantined().modules
            assert (entry.engine, entry.reason, entry.strikes) == (ENGINE, "COMPILE_TIMEOUT", 1)
            assert client.stats().quarantined_modules == 1
        # A command line as an operator has it.
        wasmkiln = [WASMKILN, "quarantine"]
        server = ["--address", two.address]
        listed = subprocess.run(
            [*wasmkiln, "ls", *server], capture_output=True, text=True, check=True
        )
        assert ENGINE in listed.stdout
        released = subprocess.run(
            [*wasmkiln, "release", entry.module_sha256, *server],
            capture_output=True,
            text=True,
            check=True,
        )
        assert released.stdout.strip() == "released 1"
        assert not here.quarantined().modules
        with pytest.raises(CompileTimeout):
            here.compile(SLOW, engine=ENGINE)
        # Others were never refused.
        assert there.compile(wasm.adder(1), engine=ENGINE).bytes


@pytest.mark.parametrize("call", ["compile", "load"])
def test_a_job_that_an_operator_kills_condemns_nobody_at_once(
    tmp_path: Path, valkey: str, call: str
) -> None:
    module, engine = (SLOW, ENGINE) if call == "compile" else (SLOW_COMPONENT, "wasmtime")
    with (
        daemon(tmp_path, "a", valkey, TWO_ENGINES) as one,
        one.client(max_attempts=1) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        for _ in range(2):
            slow = callers.submit(getattr(client, call), module, engine=engine)
            os.kill(busy_job(one.pid), signal.SIGKILL)
            with pytest.raises(CompilerCrashed):
                slow.result()
        with pytest.raises(ModuleQuarantined, match="SIGKILL"):
            getattr(client, call)(module, engine=engine)


def test_a_job_that_is_stopped_past_its_time_condemns_nobody_at_once(
    tmp_path: Path, valkey: str
) -> None:
    with (
        daemon(tmp_path, "a", valkey, COMPILE_TIMEOUT_S="5") as one,
        one.client(max_attempts=1) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        for _ in range(2):
            slow = callers.submit(client.compile, SLOW, engine=ENGINE)
            eventually(lambda: len(jobs_of(one.pid)) == 1, "no job started")
            os.kill(stopped := jobs_of(one.pid)[0], signal.SIGSTOP)
            with pytest.raises(CompileTimeout, match="without a CPU"):
                slow.result()
            # It is killed all the same, and its worker goes on.
            eventually(lambda: not parent_of(stopped), "the job is still there")
            assert client.compile(wasm.adder(1), engine=ENGINE).bytes
        with pytest.raises(ModuleQuarantined, match="COMPILE_TIMEOUT"):
            client.compile(SLOW, engine=ENGINE)


def test_a_component_that_breaks_its_engine_is_refused_by_load_everywhere(
    tmp_path: Path, valkey: str
) -> None:
    """An engine validates a component by compiling it, so each Load costs a compile."""
    with (
        daemon(tmp_path, "a", valkey, TWO_ENGINES, COMPILE_CPU_S="1") as one,
        daemon(tmp_path, "b", valkey, TWO_ENGINES, COMPILE_CPU_S="1") as two,
        one.client(max_attempts=1) as here,
        two.client(max_attempts=1) as there,
    ):
        with pytest.raises(CompileTimeout):
            here.load(SLOW_COMPONENT)
        for client in (here, there):
            for attempt in (client.load, client.compile):
                with pytest.raises(ModuleQuarantined, match="COMPILE_TIMEOUT"):
                    attempt(SLOW_COMPONENT)
        assert there.load(wasm.component(wasm.adder(1))).sha256
        assert here.release(wasm.digest(SLOW_COMPONENT)).released == 1
        with pytest.raises(CompileTimeout):
            there.compile(SLOW_COMPONENT)
        with pytest.raises(ModuleQuarantined):
            here.load(SLOW_COMPONENT)
