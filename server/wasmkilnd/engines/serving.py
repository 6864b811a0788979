"""Bring an installed engine into service: start its workers, ask what it can do, and test it.

The self-test takes the path of every request: a job compiles and serializes a small module of each
kind with the default target, cpu level and settings. Then another job loads the artifact as a host
would, in the engine's own interpreter, and calls its function, which has to return the right sum.

An engine that fails is not served, with the reason in the log, in GetCapabilities and on the
banner; it does not stop the others.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from wasmkilnd import model
from wasmkilnd.engines.child import sandbox
from wasmkilnd.engines.install import InstalledEngine
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.engine_messages import cause_line
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.isolation import IsolationGuard, NotConfined
from wasmkilnd.engines.workers.job_protocol import JobOrder, JobReport
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.engines.workers.pool import Neighbours, WorkerPool
from wasmkilnd.engines.workers.process import OutOfDescriptors, Worker, WorkerDied
from wasmkilnd.engines.workers.spawn import start_worker
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.ownership import NotOurs
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.wire import payload_views

# Limits of its own: an engine is not broken because the operator grants callers little.
LIMITS = model.Limits(
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
_MODULES = {model.Kind.CORE_MODULE: _CORE, model.Kind.COMPONENT: _COMPONENT}
_EXPORT, _ARGUMENTS, _SUM = "add", (2, 3), 5


class EngineUnusable(Exception):  # noqa: N818 - says what the engine is
    """An installed engine does not work; the message says why."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How each engine's workers are run."""

    size: int
    """Workers per engine."""
    limits: Reloadable[model.Limits]
    threads: int
    """Threads of one compilation."""
    recorder: Metrics
    guard: IsolationGuard
    users: JobUsers
    neighbours: Neighbours = field(default_factory=Neighbours)
    """The jobs of all engines."""


async def serve_engines(
    engines: Sequence[InstalledEngine], options: WorkerOptions
) -> tuple[list[ServedEngine], list[model.UnservedEngine]]:
    """Start all engines; return those that work, and those that do not with the reason.

    Whatever is wrong with one engine does not stop the others.
    """
    outcomes = await asyncio.gather(
        *(_serve_engine(engine, options) for engine in engines), return_exceptions=True
    )
    served, unserved = [], []
    for engine, outcome in zip(engines, outcomes, strict=True):
        if isinstance(outcome, ServedEngine):
            served.append(outcome)
        elif isinstance(outcome, Exception):
            unserved.append(model.UnservedEngine(engine.id, _in_words(outcome)))
        else:
            raise outcome
    return served, unserved


async def _serve_engine(engine: InstalledEngine, options: WorkerOptions) -> ServedEngine:
    """Start an engine's workers, ask it what it can do, and test it."""

    async def start() -> Worker:
        user = await options.users.pick()
        worker = await start_worker(engine.interpreter, engine.name, options.threads, user)
        try:
            options.guard.admit(engine.id, worker.isolation)
            await worker.run(job_orders.nothing(options.limits.current))
        except (NotConfined, OutOfDescriptors) as failure:
            await worker.kill()
            raise WorkerDied(str(failure)) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    pool = WorkerPool(
        engine.id,
        start,
        size=options.size,
        limits=options.limits,
        recorder=options.recorder,
        neighbours=options.neighbours,
    )
    try:
        # Before the first worker, which would run what it finds there as the daemon's user.
        await asyncio.to_thread(engine.check)
        await pool.start()
        capabilities = await _ask(pool)
        if capabilities.identity.id != engine.id:
            raise EngineUnusable(f"it calls itself {capabilities.identity.id}")
        await _test(capabilities, pool)
        return ServedEngine(capabilities, pool, engine.is_there)
    except BaseException:
        await pool.close()
        raise


def _in_words(failure: Exception) -> str:
    if isinstance(failure, FileNotFoundError):
        return f"it is incomplete, without {failure.filename}: remove it, and install it again"
    if isinstance(failure, EngineUnusable | WorkerDied | WasmkilnError | OSError | NotOurs):
        return str(failure)
    # Capabilities that the daemon cannot read, for example.
    words = " ".join(str(failure).split())
    return f"it broke the job protocol ({type(failure).__name__}: {words:.300})"


async def _ask(pool: WorkerPool) -> model.EngineCapabilities:
    report, _ = await pool.run(job_orders.describe(own_limits()))
    if report.protocol_error or not report.result:
        words = report.protocol_error or cause_line(report.last_words)
        raise EngineUnusable(words or "it did not report its capabilities")
    told = report.result["capabilities"]
    return TypeAdapter(model.EngineCapabilities).validate_python({**told, "identity": told})


def own_limits() -> model.Limits:
    """Return the limits of the daemon's own jobs, which are within the daemon's hard limits."""
    memory_bytes, cpu_s = sandbox.reachable(LIMITS.compile_memory_bytes, LIMITS.compile_cpu_s)
    return replace(LIMITS, compile_memory_bytes=memory_bytes, compile_cpu_s=cpu_s)


async def _test(capabilities: model.EngineCapabilities, pool: WorkerPool) -> None:
    """Have the engine compile and run a module of each kind. Raises EngineUnusable."""
    host = next((target for target in capabilities.targets if target.host), None)
    if host is None:
        raise EngineUnusable("the self-test failed: it does not compile for this machine")

    async def run(what: str, order: JobOrder) -> JobReport:
        try:
            report, _ = await pool.run(order)
            found = verdict.read(report, capabilities.identity.id, what, LIMITS)
        except WasmkilnError as failure:
            raise EngineUnusable(f"the self-test failed: {failure.message}") from None
        if found.outcome is not verdict.Outcome.VALID:
            raise EngineUnusable(
                f"the self-test failed: it refuses a valid module: {found.message}"
            )
        return report

    for kind in sorted(capabilities.kinds, key=lambda kind: kind.value):
        wasm, own = bytes.fromhex(_MODULES[kind]), own_limits()
        module = model.Module(hashlib.sha256(wasm).hexdigest(), kind, wasm)
        order = job_orders.on_module("compile", module, host.triple, host.cpus[0], {}, own)
        packed = (await run("compiling", order)).packed
        if packed is None:
            raise EngineUnusable("the self-test failed: it sent no artifact")
        artifact = b"".join(payload_views(packed.frames))
        order = job_orders.call(artifact, kind, host.triple, _EXPORT, _ARGUMENTS, own)
        value = ((await run("running what it compiled", order)).result or {}).get("value")
        if value != _SUM:
            raise EngineUnusable(f"the self-test failed: its code returned {value!r:.40} for 2 + 3")
