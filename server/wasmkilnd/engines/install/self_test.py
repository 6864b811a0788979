"""The self-test: an engine compiles and runs a small module before it is served.

It takes the path of every request: a job compiles and serializes the module with the default
target, cpu level and settings. Then another job loads the artifact as a host would, in the
engine's own interpreter, and calls its function, which has to return the right sum.
"""

from __future__ import annotations

from dataclasses import replace

from wasmkilnd.admission import admit
from wasmkilnd.engines.child import sandbox
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport
from wasmkilnd.engines.workers.pool import WorkerPool
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import EngineCapabilities, Kind, Limits, TargetInfo
from wasmkilnd.wire import payload_views

# Limits of its own: an engine is not broken because the operator grants callers little.
LIMITS = Limits(
    module_bytes=1024,
    artifact_bytes=4 * 1024**2,
    compile_timeout_s=60.0,
    compile_cpu_s=60.0,
    compile_memory_bytes=4 * 1024**3,
    queue_length=1,
    queue_bytes=1024**2,
)

# (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
_CORE = "0061736d0100000001070160027f7f017f030201000707010361646400000a09010700200020016a0b"
# (component (core module $m the module above) (core instance $i (instantiate $m))
#   (func (export "add") (param "a" u32) (param "b" u32) (result u32)
#     (canon lift (core func $i "add"))))
_COMPONENT = (
    "0061736d0d00010001290061736d0100000001070160027f7f017f030201000707010361646400000a0901"
    "0700200020016a0b020401000000070b0140020161790162790079060901000001000361646408060100000000"
    "000b09010003616464010000"
)
_MODULES = {Kind.CORE_MODULE: bytes.fromhex(_CORE), Kind.COMPONENT: bytes.fromhex(_COMPONENT)}
_EXPORT, _ARGUMENTS, _SUM = "add", (2, 3), 5


class SelfTestFailed(Exception):  # noqa: N818 - an outcome
    """The engine does not compile or run a valid module; the message says what went wrong."""


def own_limits() -> Limits:
    """Return the limits of the daemon's own jobs, which are within the daemon's hard limits."""
    memory_bytes, cpu_s = sandbox.reachable(LIMITS.compile_memory_bytes, LIMITS.compile_cpu_s)
    return replace(LIMITS, compile_memory_bytes=memory_bytes, compile_cpu_s=cpu_s)


async def self_test(capabilities: EngineCapabilities, pool: WorkerPool) -> None:
    """Have the engine compile and run a module of each kind. Raises SelfTestFailed."""
    host = next((target for target in capabilities.targets if target.host), None)
    if host is None:
        raise SelfTestFailed("it does not compile for this machine")
    for kind in sorted(capabilities.kinds, key=lambda kind: kind.value):
        try:
            artifact = await _compiled(capabilities.identity.id, kind, host, pool)
            await _run(capabilities.identity.id, artifact, kind, host, pool)
        except WasmkilnError as failure:
            raise SelfTestFailed(failure.message) from None


async def _compiled(engine_id: str, kind: Kind, host: TargetInfo, pool: WorkerPool) -> bytes:
    module = admit(_MODULES[kind], LIMITS.module_bytes)
    order = job_orders.on_module("compile", module, host.triple, host.cpus[0], {}, own_limits())
    report = await _run_order(engine_id, "compiling", order, pool)
    if report.packed is None:
        raise SelfTestFailed("it sent no artifact")
    return b"".join(payload_views(report.packed.frames))


async def _run(
    engine_id: str, artifact: bytes, kind: Kind, host: TargetInfo, pool: WorkerPool
) -> None:
    order = job_orders.call(artifact, kind, host.triple, _EXPORT, _ARGUMENTS, own_limits())
    report = await _run_order(engine_id, "running what it compiled", order, pool)
    value = (report.result or {}).get("value")
    if value != _SUM:
        raise SelfTestFailed(f"its code returned {value!r:.40} for 2 + 3")


async def _run_order(engine_id: str, what: str, order: JobOrder, pool: WorkerPool) -> JobReport:
    report, _ = await pool.run(order)
    found = verdict.read(report, engine_id, what, LIMITS)
    if found.outcome is not Outcome.VALID:
        raise SelfTestFailed(f"it refuses a valid module: {found.message}")
    return report
