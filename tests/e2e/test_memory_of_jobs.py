"""Memory of jobs: what many of them want at once brings nothing down and holds nobody up.

Where eight jobs want a quarter of the machine's memory each, the machine is a control group.
``FULL=1`` has it as large as a small machine.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from wasmkiln import CompileMemoryLimit, WasmkilnError

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, failure_of, header_of
from tests.e2e.control_groups import ControlGroup, control_group
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually, jobs_of, send, stopped
from tests.e2e.programs import WASMKILND, Installed
from tests.sizes import size

MIB = 2**20
# The machine, all of its jobs, and a job, at first and alone. Where the machine is small, a job
# needs relatively more: the address space that no thread of its touches does not shrink with it.
MACHINE, ALL, ONE = size(8192, 1536) * MIB, size(6144, 1152) * MIB, size(2048, 384) * MIB
RETRY = 2 * ONE
# wasmtime touches 5.6 KB for each empty function: the first has most of what one job may have, the
# second more than that, and the third more than it may have alone.
NEEDED = size(0.85, 0.45) * ONE, 1.1 * ONE, 1.05 * RETRY
FITS, LARGE, TOO_LARGE = (int(each / 5700) for each in NEEDED)
# Two processors, however many there are: each thread takes address space. The group comes last, so
# that the interpreter is in it with all that it maps from then on.
_ENTER = """if True:
    import os, sys
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    open(sys.argv[1], "w").write("0")
    os.execv(sys.argv[2], sys.argv[2:])
"""


def on(group: ControlGroup | None, folder: Path, *flags: str) -> Daemon:
    """Start a daemon in the group, if there is one, with eight workers of one engine."""
    state = fresh_state(folder / "state", own_keys=True, engines=("wasmtime-50.0.1",))
    tiers = "--redis-url", "none", "--host-store-dir", "none", "--memory-bytes", "16MiB"
    sizes = "--max-module-bytes", "8MiB"
    entered = str(group.path / "cgroup.procs") if group else os.devnull
    enter = sys.executable, "-c", _ENTER, entered, WASMKILND
    own = {"WASMKILN_WORKERS": "8", "WASMKILN_COMPILE_TIMEOUT_S": "900"}
    limits = "--compile-memory-bytes", str(ONE), "--compile-memory-total-bytes", str(ALL)
    return Daemon(state, [*tiers, *sizes, *limits, *flags], own, enter)


@pytest.mark.timeout(1800)
def test_with_every_job_at_its_limit_nothing_is_killed_and_all_are_answered(
    engines: Installed, tmp_path: Path
) -> None:
    sizes = [*(FITS + n for n in range(8)), LARGE, TOO_LARGE]
    with control_group(MACHINE) as group:
        flags = "--compile-memory-retry-bytes", str(RETRY)
        with (
            on(group, tmp_path, *flags) as daemon,
            daemon.client(timeout_s=1500, max_attempts=1) as client,
            ThreadPoolExecutor(len(sizes) + 1) as threads,
        ):

            def compiled(functions: int) -> int | WasmkilnError:
                try:
                    return client.compile(wasm.many_functions(functions)).header.size_bytes
                except WasmkilnError as failure:
                    return failure

            answers = [threads.submit(compiled, functions) for functions in sizes]
            # And small ones go on.
            small = [client.load(wasm.adder(tag)).sha256 for tag in range(20)]
            *fit, too_large = [answer.result() for answer in answers]
            again = {
                (memory, outcome): daemon.metric(
                    "jobs_run_again_total", memory=memory, outcome=outcome
                )
                for memory in ("limit", "retry")
                for outcome in ("ok", "failed")
            }
            replaced = daemon.metric("workers_replaced_total", engine="wasmtime-50.0.1")
            print(f"peak {group.peak_bytes / MIB:,.0f} MiB, {group.killed} killed, {again}")
            assert len(set(small)) == 20
            assert all(isinstance(each, int) and each > 0 for each in fit), fit
            assert isinstance(too_large, CompileMemoryLimit), too_large
            assert too_large.metadata["limit_bytes"] == str(RETRY)
            assert again["retry", "ok"] == 1
            assert again["retry", "failed"] == 1
            assert (replaced, group.killed) == (0, 0)
            assert daemon.metric("jobs_memory_reserved_bytes") == 0


def test_a_caller_waits_for_one_job_of_another_whose_jobs_run_out_of_memory_twice(
    engines: Installed, tmp_path: Path
) -> None:
    """Those that run again, alone, take turns with the callers who came after them."""
    one, hogs = 320 * MIB, 5
    total, retry = hogs * one + MIB, one + MIB
    flags = "--compile-memory-bytes", str(one), "--compile-memory-total-bytes", str(total)
    more = "--compile-memory-retry-bytes", str(retry)
    with (
        on(None, tmp_path, *flags, *more) as daemon,
        Caller(daemon) as hog,
        Caller(daemon) as honest,
    ):
        too_large = [wasm.many_functions(retry // 5700, tag=1 + number) for number in range(hogs)]
        tried = [hog.compile(each, name="hog") for each in too_large]
        held: list[int] = []

        def holds_the_first() -> bool:
            """Stop the job that has all the memory; it is the first that runs again."""
            if daemon.metric("jobs_memory_reserved_bytes") == total:
                held.extend(filter(stopped, jobs_of(daemon.pid)))
            return bool(held)

        eventually(holds_the_first, "no job runs again")
        done = sum(call.done() for call in tried)
        call = honest.compile(wasm.adder(1), name="honest")
        waits = partial(daemon.metric, "queue_callers", engine=ENGINE)
        eventually(lambda: waits() == 2, "the other caller does not wait")
        send(signal.SIGCONT, *held)
        assert header_of(call).size_bytes
        assert {failure_of(each)[1] for each in tried} == {"COMPILE_MEMORY_LIMIT"}
        words = re.compile(r'"request_id": "(hog|honest)"')
        eventually(lambda: len(words.findall(daemon.log)) == hogs + 1, "a call has no line")
        ended = words.findall(daemon.log)
    print(f"{done} had ended, then {ended[done:]}")
    # The one that ran, and perhaps one whose turn came at the same time.
    assert ended.index("honest") <= done + 2 < hogs
