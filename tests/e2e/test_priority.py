"""The priority of compilations, in a running daemon and after a reload."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from wasmkiln import WasmkilnError

from tests.e2e import wasm
from tests.e2e.processes import eventually, jobs_of
from tests.e2e.programs import Installed
from tests.e2e.test_reload import Configured, changes

# Valid, and for longer than anybody waits.
SLOW = wasm.nested_blocks(500_000)


@pytest.fixture
def configured(engines: Installed, tmp_path: Path) -> Iterator[Configured]:
    one = Configured(tmp_path, compile_priority="normal", abandoned_compiles="kill", quarantine_s=0)
    with one.daemon:
        yield one


@contextmanager
def compiling(configured: Configured) -> Iterator[int]:
    """A job that compiles; yields its pid, and has it ended."""

    def compile_for_a_while() -> None:
        with configured.daemon.client(timeout_s=15) as client, suppress(WasmkilnError):
            client.compile(SLOW)

    def jobs() -> list[int]:
        return jobs_of(configured.daemon.pid)

    eventually(lambda: not jobs(), "the job before does not end", timeout_s=60)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(compile_for_a_while)
        eventually(jobs, "no job starts")
        yield jobs()[0]
        call.result()


def niceness_of(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def test_a_reload_changes_the_priority_of_later_jobs(configured: Configured) -> None:
    usual = niceness_of(0)
    with compiling(configured) as job:
        assert niceness_of(job) == usual
        configured.write(compile_priority="low")
        assert changes(configured.reload(), "setting changed") == {
            "compile_priority": ("normal", "low")
        }
        assert niceness_of(job) == usual
    with compiling(configured) as job:
        eventually(lambda: niceness_of(job) == max(5, usual), "the job keeps its priority")
        assert os.sched_getscheduler(job) == os.SCHED_OTHER
