"""What the engines do with a module: compile it, validate it, or say why they refuse it.

An engine's refusal alone does not tell a broken module from one that is ahead of the engine.
So each other engine is asked to validate it, once, as a job of the same caller. If one of them
accepts the module, the refusing engine lacks a feature; otherwise the module is invalid. Nothing
of that is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial

from wasmkilnd import errors
from wasmkilnd.engines import verdict
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.pool import Job, Ready, Unless
from wasmkilnd.engines.process import order_on
from wasmkilnd.engines.served import EngineTable, ServedEngine
from wasmkilnd.engines.verdict import Outcome, Verdict
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Waiters
from wasmkilnd.model import CompileSpec, Kind, Limits, Module
from wasmkilnd.ports import CompiledCode, Refused
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics

_RECORDED = {
    Outcome.VALID: "ok",
    Outcome.INVALID: "module_invalid",
    Outcome.UNSUPPORTED: "engine_lacks_feature",
}
# wasmtime's package has no other way to validate them.
_VALIDATED_BY_COMPILING = frozenset({Kind.COMPONENT})
_NO_SUCH_KIND = Verdict(
    Outcome.UNSUPPORTED, "it is a component, and this engine runs core modules only"
)
# Validating the worst of 280 hostile core modules took 0.22 s. Only components need more; an
# engine that needs more than this for a second opinion gives none.
_SECOND_OPINION_CPU_S = 2.0
# The engine was not asked: that says nothing about the module.
_NOT_ASKED = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.SERVER_DRAINING})


class Compilation:
    """What engines do with modules. For one event loop.

    Whatever a module does to an engine, only the calls about that module fail, and each with a
    WasmkilnError.
    """

    def __init__(self, engines: EngineTable, limits: Reloadable[Limits], recorder: Metrics) -> None:
        self._table = engines
        self._limits = limits
        self._recorder = recorder

    async def compile(
        self, spec: CompileSpec, module: Module, waiters: Waiters, *, ready: Ready, unless: Unless
    ) -> CompiledCode | Refused | None:
        """Compile ``module`` in a worker, in the turn of ``waiters``; record how that ended.

        Once a worker is free, ``ready`` is awaited, with how long the module waited for it.
        Return None if that returns False, or if ``unless`` returns before. Raises the errors of
        Compile, and what ``ready`` and ``unless`` raise.
        """
        engine = self._table.known[spec.engine.id]
        refused = partial(self._refusal, engine, module, waiters, spec=spec)
        if not engine.takes(module.kind):
            return partial(refused, _NO_SUCH_KIND)
        limits, settings = self._limits.current, spec.changed_settings
        job = Job(order_on("compile", module, spec.target, spec.cpu, settings, limits), waiters)
        code = None
        steps = ExitStack()
        about = steps.enter_context(tracing.step("queue", engine=engine.id, outcome="stored"))

        async def began(queued_s: float) -> bool:
            nonlocal about
            about["outcome"] = "worker"
            steps.close()
            needed = await ready(queued_s)
            if needed:
                step = tracing.step("compile", engine=engine.id, module_bytes=len(module.wasm))
                about = steps.enter_context(step)
            return needed

        try:
            with steps:
                report = await engine.pool.run(job, ready=began, unless=unless)
                if report.needless:
                    return None
                found = verdict.read(report, engine.id, "compiling", limits)
                if found.outcome is Outcome.VALID:
                    code = verdict.compiled_code(report, engine.id, job.queued_s or 0.0)
                    about["artifact_bytes"] = code.code.size_bytes
                about["outcome"] = "ok" if code else "refused"
        except WasmkilnError as failure:
            failure = self._table.explained(engine.id, failure)
            if failure.reason is not Reason.MODULE_QUARANTINED:  # ``ready`` said that.
                self._record(job, engine.id, failure.reason.value.lower())
            raise failure from None
        self._record(job, engine.id, _RECORDED[found.outcome])
        return code or partial(refused, found)

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate in a worker, in the turn of ``waiters``. Raises the errors of Load.

        ``watch`` surrounds a job that has to compile in order to validate: it checks the
        quarantine and records strikes.
        """
        engine, found = self._table.known[engine_id], _NO_SUCH_KIND
        with tracing.step("validate", engine=engine.id, module_bytes=len(module.wasm)) as about:
            if engine.takes(module.kind):
                async with watch if module.kind in _VALIDATED_BY_COMPILING else nullcontext():
                    limits = self._limits.current
                    found = await self._ask(engine, "validate", module, waiters, limits)
            if found.outcome is not Outcome.VALID:
                raise await self._refusal(engine, module, waiters, found)
            about["outcome"] = "ok"

    def _record(self, job: Job, engine_id: str, outcome: str) -> None:
        took_s = time.monotonic() - job.asked_s
        queued_s = took_s if job.queued_s is None else job.queued_s
        self._recorder.compiled(engine_id, outcome, took_s - queued_s, queued_s)

    async def _refusal(
        self,
        engine: ServedEngine,
        module: Module,
        waiters: Waiters,
        refused: Verdict,
        spec: CompileSpec | None = None,
    ) -> WasmkilnError:
        """Return MODULE_INVALID, or ENGINE_LACKS_FEATURE if another engine accepts the module.

        Ask no engine about what a fast compiler lacks: it says nothing about the module, and the
        caller may be waiting for the optimised artifact instead. Settings that were changed may
        switch a proposal off: then the engine itself is asked too, with its defaults.

        Raises COMPILE_QUEUE_FULL or SERVER_DRAINING where no engine accepts the module and one
        could not be asked: a verdict without it could be wrong.
        """
        takes_kind, unsupported = engine.takes(module.kind), refused.outcome is Outcome.UNSUPPORTED
        if spec and spec.is_fast and takes_kind and unsupported:
            # An engine that validates components by compiling them has not validated it.
            valid = module.kind not in _VALIDATED_BY_COMPILING
            return errors.fast_compiler_lacks_feature(
                engine.id, refused.message, refused.offset, refused.feature, valid=valid
            )
        # A refusal is not stored, so stop if no caller waits any more.
        waiters.release()
        if not waiters.waiting:
            return errors.server_draining()
        others = [each for each in self._table.served.values() if each.takes(module.kind)]
        if not (spec and spec.changed_settings) or unsupported:
            others = [each for each in others if each.id != engine.id]
        # A module that the engine calls valid and does not compile is valid for its other
        # versions too. To name a version that compiles it, the daemon has to try.
        by_compiling = engine.name if unsupported else ""
        ops = ["compile" if each.name == by_compiling else "validate" for each in others]
        asked = (self._opinion(*each, module, waiters) for each in zip(others, ops, strict=True))
        opinions = list(zip(others, await asyncio.gather(*asked), strict=True))
        verdicts = [(engine, refused)] if takes_kind else []
        verdicts += [(other, each) for other, each in opinions if isinstance(each, Verdict)]
        accepted_by = [other.id for other, each in verdicts if each.outcome is Outcome.VALID]
        if not takes_kind:
            # Those that reached no verdict run modules of its kind, which the engine does not.
            accepted_by += [other.id for other, each in opinions if each is None]
        for _, each in opinions:
            if isinstance(each, WasmkilnError) and not accepted_by:
                raise each
        feature = "" if accepted_by else _lacked_by_all(verdicts)
        invalid = verdicts and all(each.outcome is Outcome.INVALID for _, each in verdicts)
        if accepted_by or feature or not invalid:
            return errors.engine_lacks_feature(
                engine.id, refused.message, accepted_by, refused.offset, feature or refused.feature
            )
        first, said = verdicts[0]
        return errors.module_invalid(first.id, said.message, said.offset)

    async def _opinion(
        self, other: ServedEngine, op: str, module: Module, waiters: Waiters
    ) -> Verdict | WasmkilnError | None:
        """Return another engine's verdict; None if it has none, an error if it was not asked."""
        limits = self._limits.current
        cpu_s = min(limits.compile_cpu_s, _SECOND_OPINION_CPU_S)
        waiters.quota.opinion()
        try:
            return await self._ask(other, op, module, waiters, replace(limits, compile_cpu_s=cpu_s))
        except WasmkilnError as failure:
            return failure if failure.reason in _NOT_ASKED else None

    async def _ask(
        self, engine: ServedEngine, op: str, module: Module, waiters: Waiters, limits: Limits
    ) -> Verdict:
        """Return the verdict of an engine with its default settings.

        Raises the errors of Load for a job that reached no verdict.
        """
        host = engine.capabilities.host_triple
        try:
            job = Job(order_on(op, module, host, NATIVE, {}, limits), waiters)
            return verdict.read(await engine.pool.run(job), engine.id, "validating", limits)
        except WasmkilnError as failure:
            raise self._table.explained(engine.id, failure) from None


def _lacked_by_all(verdicts: Sequence[tuple[ServedEngine, Verdict]]) -> str:
    """Return the feature that the module needs and none of the engines has; "" if none.

    An engine that has the feature, and calls the module invalid for another reason, has
    read past the place where the first engine stopped: the module is invalid.
    """
    for _, found in verdicts:
        overruled = any(
            found.feature in other.capabilities.wasm_features
            for other, theirs in verdicts
            if theirs is not found
        )
        if found.feature and not overruled:
            return found.feature
    return ""
