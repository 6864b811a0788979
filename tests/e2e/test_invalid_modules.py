"""An invalid module costs a validation and no compile, however late its error comes.

The CPU time of the jobs is what is compared, as the kernel counts it: no clock on the wall.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmkiln import Client, ModuleInvalid

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually, jobs_of, workers_of
from tests.e2e.programs import ENGINE_SPECS

# By their functions, so that no engine has been asked of another's module.
MODULES = {spec.replace("==", "-"): 1_000 + each for each, spec in enumerate(ENGINE_SPECS)}


def jobs_cpu_s(daemon: Daemon, engine_id: str) -> float:
    """Return the CPU time of all jobs of an engine that have ended: its workers' children."""
    ticks = 0
    for worker in workers_of(daemon.pid):
        if f"/{engine_id}/" in Path(f"/proc/{worker}/cmdline").read_text():
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[13]) + int(fields[14])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("engine_id", MODULES)
def test_an_invalid_module_costs_no_compile(daemon: Daemon, client: Client, engine_id: str) -> None:
    def cost_s(call: Callable[[], object], least_s: float) -> float:
        before, workers = jobs_cpu_s(daemon, engine_id), workers_of(daemon.pid)
        call()
        # An answer may come before its job has ended, whose time counts from then on.
        eventually(lambda: jobs_cpu_s(daemon, engine_id) >= before + least_s, "it took no time")
        eventually(lambda: not jobs_of(daemon.pid), "a job did not end")
        assert workers_of(daemon.pid) == workers, "a worker was replaced, and its jobs forgotten"
        return jobs_cpu_s(daemon, engine_id) - before

    def refused(call: Callable[[], object]) -> ModuleInvalid:
        with pytest.raises(ModuleInvalid) as refusal:
            call()
        return refusal.value

    valid = wasm.busy_functions(MODULES[engine_id])
    broken = wasm.busy_functions(MODULES[engine_id], last_is_broken=True)
    told: list[ModuleInvalid] = []
    made_s = cost_s(lambda: client.compile(valid, engine=engine_id, skip_cache_lookup=True), 0.05)
    refused_s = cost_s(
        lambda: told.append(refused(lambda: client.compile(broken, engine=engine_id))), 0
    )
    told.append(refused(lambda: client.load(broken, engine=engine_id)))
    # The same words, and the same place: the end of the module.
    assert told[0].message == told[1].message
    assert told[0].metadata == told[1].metadata
    assert int(told[0].metadata["offset"]) > 0.99 * len(broken)
    assert refused_s < made_s / 4
