"""An invalid module costs a validation and no compile, however late its error comes.

The CPU time of the job is what is compared, as the kernel counts it: no clock on the wall.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from wasmkilnd.admission import admit
from wasmkilnd.engines.install.self_test import LIMITS
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.job_protocol import JobReport
from wasmkilnd.engines.workers.job_users import JobUser
from wasmkilnd.engines.workers.process import Worker
from wasmkilnd.engines.workers.spawn import start_worker

from tests.e2e import wasm
from tests.e2e.programs import ENGINE_SPECS, Installed

HOST = "x86_64-unknown-linux-gnu"
VALID = wasm.busy_functions(1_000)
BROKEN = wasm.busy_functions(1_000, last_is_broken=True)


@asynccontextmanager
async def worker_of(engines: Installed, engine_id: str) -> AsyncIterator[Worker]:
    [engine] = [engine for engine in engines if engine.id == engine_id]
    worker = await start_worker(engine.interpreter, engine.name, 2, JobUser())
    try:
        yield worker
    finally:
        await worker.kill()


async def done(worker: Worker, op: str, module: bytes) -> JobReport:
    wasm_module = admit(module, len(module))
    report = await worker.run(job_orders.on_module(op, wasm_module, HOST, "native", {}, LIMITS))
    assert report.result
    return report


@pytest.mark.parametrize("engine_id", [spec.replace("==", "-") for spec in ENGINE_SPECS])
async def test_an_invalid_module_costs_no_compile(engines: Installed, engine_id: str) -> None:
    async with worker_of(engines, engine_id) as worker:
        made = await done(worker, "compile", VALID)
        refused = await done(worker, "compile", BROKEN)
        validated = await done(worker, "validate", BROKEN)
    assert made.packed
    assert refused.result
    assert validated.result
    # The same verdict, the same words, the same place: the end of the module.
    told = ("outcome", "message", "offset")
    assert [refused.result[one] for one in told] == [validated.result[one] for one in told]
    assert refused.result["offset"] > 0.99 * len(BROKEN)
    assert refused.cpu_s < made.cpu_s / 4
