"""Kills, hangs and crowds inside a worker affect nothing outside."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from wasmkiln import Artifact, Client, CompilerCrashed, CompileTimeout
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon
from tests.e2e.fixtures import serving
from tests.e2e.processes import busy_job, eventually, kill_job, parent_of, workers_of

_tags = itertools.count(20)


def slow(tag: int) -> bytes:
    """A module that takes wasmer longer than it may."""
    return wasm.nested_blocks(1_000_000, tag)


def test_no_engine_is_in_the_daemon_and_workers_see_no_module(
    daemon: Daemon, client: Client
) -> None:
    for engine in ("wasmer", "wasmtime"):
        client.compile(wasm.adder(next(_tags)), engine=engine)
    mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "grpc" in mapped  # The page does list what is loaded.
    assert "wasmer" not in mapped
    assert "wasmtime" not in mapped
    workers = workers_of(daemon.pid)
    assert len(workers) == 3 * (os.cpu_count() or 1)
    for worker in workers:
        assert len(list(Path(f"/proc/{worker}/task").iterdir())) == 1
        environment = Path(f"/proc/{worker}/environ").read_bytes()
        assert b"PATH" not in environment
        assert b"HOME" not in environment


lean_daemon = serving(*ONE_ENGINE, flags=["--redis-url", "none", "--compile-timeout-s", "5"])
"""A daemon with one worker, whose jobs have little time."""


@dataclass
class Slow:
    """A call whose job is busy, and one that waits for its worker."""

    job: int
    worker: int
    call: Future[Artifact]
    waiting: Future[Artifact]


@contextmanager
def slow_call(daemon: Daemon) -> Iterator[Slow]:
    with daemon.client(max_attempts=1, timeout_s=100) as client, ThreadPoolExecutor(2) as callers:
        # A module of its own: one that failed before is refused at once.
        call = callers.submit(client.compile, slow(next(_tags)), engine="wasmer")
        job = busy_job(daemon.pid)
        waiting = callers.submit(client.compile, wasm.adder(next(_tags)), engine="wasmer")
        yield Slow(job, parent_of(job), call, waiting)
        # Whatever has become of it, the next one is served.
        assert waiting.result().header.size_bytes


def test_a_killed_job_costs_only_its_own_call(lean_daemon: Daemon) -> None:
    with slow_call(lean_daemon) as slow:
        kill_job(lean_daemon.pid)
        with pytest.raises(CompilerCrashed) as failure:
            slow.call.result()
        assert failure.value.code is grpc.StatusCode.INTERNAL
        assert failure.value.metadata["signal"] == "SIGKILL"
    assert workers_of(lean_daemon.pid) == [slow.worker]


def test_a_killed_worker_is_replaced_and_its_job_done_by_another(state_dir: Path) -> None:
    with (
        Daemon(state_dir, ["--redis-url", "none", "--max-module-bytes", "12MiB"]) as daemon,
        daemon.client(max_attempts=1, timeout_s=150) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        module = wasm.busy_functions(8_000)
        call = callers.submit(client.compile, module, engine="wasmtime-50.0.1")
        job = busy_job(daemon.pid)
        worker = parent_of(job)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: not parent_of(job), "the job outlived its worker")
        assert call.result().header.origin == types_pb2.ORIGIN_COMPILED
        replaced = {w.engine: w.replaced for w in client.stats().workers}
        assert replaced["wasmtime-50.0.1"] == 1
        eventually(lambda: len(workers_of(daemon.pid)) == 2, "the worker was not replaced")


def test_a_job_past_its_limit_is_killed_and_its_slot_is_free(lean_daemon: Daemon) -> None:
    with slow_call(lean_daemon) as slow:
        with pytest.raises(CompileTimeout):
            slow.call.result()
        assert slow.waiting.result().header.size_bytes
        # Dead it is; its worker may be a moment behind with burying it.
        eventually(lambda: not Path(f"/proc/{slow.job}").exists(), "the job is left")
        assert workers_of(lean_daemon.pid) == [slow.worker]


def test_a_stopped_worker_does_not_hold_its_callers(lean_daemon: Daemon) -> None:
    """It is given up after its grace, under a job or idle, and what it had is done by another."""
    with slow_call(lean_daemon) as slow:
        os.kill(slow.worker, signal.SIGSTOP)
        # The job is killed at its limit and its worker after its grace; the worker's successor
        # does the job again, and that one meets its limit as well.
        with pytest.raises(CompileTimeout):
            slow.call.result()
        assert not parent_of(slow.worker)
    [idle] = workers_of(lean_daemon.pid)
    os.kill(idle, signal.SIGSTOP)
    with lean_daemon.client(timeout_s=100) as client:
        assert client.compile(wasm.adder(next(_tags)), engine="wasmer").header.size_bytes
