"""Eight jobs want a quarter of the machine's memory each, all at once: none brings it down.

The machine is a control group. ``FULL=1`` has it as large as a small machine.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkiln import CompileMemoryLimit, WasmkilnError

from tests.e2e import wasm
from tests.e2e.control_groups import ControlGroup, control_group
from tests.e2e.daemon import Daemon, fresh_state
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


def on(group: ControlGroup, folder: Path, *flags: str) -> Daemon:
    """Start a daemon in the group, with eight workers of one engine."""
    state = fresh_state(folder / "state", own_keys=True, engines=("wasmtime-50.0.1",))
    tiers = "--redis-url", "none", "--host-store-dir", "none", "--memory-bytes", "16MiB"
    sizes = "--max-module-bytes", "8MiB"
    enter = sys.executable, "-c", _ENTER, str(group.path / "cgroup.procs"), WASMKILND
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
