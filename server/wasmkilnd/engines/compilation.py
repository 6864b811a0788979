"""What the engines do with a module: compile it, validate it, or say why they refuse it.

An engine's refusal alone does not tell a broken module from one that is ahead of the engine.
So each other engine is asked to validate it, once, as a job of the same caller. If one of them
accepts the module, the refusing engine lacks a feature; otherwise the module is invalid. Nothing
of that is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.table import EngineTable
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.pool import Job, Unless
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Waiters
from wasmkilnd.model import CompileSpec, Kind, Limits, Module
from wasmkilnd.ports import CompiledCode, Refused
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics

_REASONS = {
    Outcome.INVALID: Reason.MODULE_INVALID,
    Outcome.UNSUPPORTED: Reason.ENGINE_LACKS_FEATURE,
}
# wasmtime's package has no other way to validate them.
_VALIDATED_BY_COMPILING = frozenset({Kind.COMPONENT})
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
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        *,
        ready: Callable[[float], Coroutine[Any, Any, bool]],
        unless: Unless,
    ) -> CompiledCode | Refused | None:
        """Compile ``module`` in a worker, in the turn of ``waiters``; record how that ended.

        Once a worker is free, ``ready`` is awaited, with how long the module waited for it.
        Return None if that returns False, or if ``unless`` returns before. Raises the errors of
        Compile, and what ``ready`` and ``unless`` raise.
        """
        engine = self._table.known[spec.engine.id]
        refused = partial(self._explained, spec, module, waiters)
        if not engine.takes(module.kind):
            return partial(refused, _no_such_kind(module.kind))
        limits, settings = self._limits.current, spec.changed_settings
        order = job_orders.on_module("compile", module, spec.target, spec.cpu, settings, limits)
        job, needed = Job(waiters, order), False
        with tracing.step("queue", engine=engine.id) as about, self._recorded(job, engine.id):
            pool = self._table.working(engine.id).pool
            if not await pool.take(job, unless):
                about["outcome"] = "stored"
                return None
            about["outcome"] = "worker"
        try:
            needed = await ready(job.queued_s or 0.0)
        finally:
            if not needed:
                pool.decline(job)
        if not needed:
            return None
        with (
            tracing.step("compile", engine=engine.id, module_bytes=len(module.wasm)) as about,
            self._recorded(job, engine.id),
        ):
            report = await pool.work(job)
            found = verdict.read(report, engine.id, "compiling", limits)
            if (size_bytes := found.oversize_bytes) is not None:
                raise errors.artifact_too_large(engine.id, size_bytes, limits.artifact_bytes)
            code = None
            if found.outcome is Outcome.VALID:
                code = verdict.compiled_code(report, engine.id, job.queued_s or 0.0)
                about["artifact_bytes"] = code.code.size_bytes
            about["outcome"] = "ok" if code else "refused"
        self._record(job, engine.id, _REASONS.get(found.outcome))
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
        engine = self._table.working(engine_id)
        by_compiling = engine.takes(module.kind) and module.kind in _VALIDATED_BY_COMPILING
        with tracing.step("validate", engine=engine.id, module_bytes=len(module.wasm)) as about:
            async with watch if by_compiling else nullcontext():
                found = await self._ask(engine, "validate", module, self._limits.current, waiters)
            if found.outcome is not Outcome.VALID:
                raise await self._refusal(engine, module, found, waiters)
            about["outcome"] = "ok"

    @contextmanager
    def _recorded(self, job: Job, engine_id: str) -> Iterator[None]:
        """Record an exception as the end. Do not record cancelled compilations.

        Raises ENGINE_REMOVED for what broke because the engine's files are gone.
        """
        try:
            yield
        except WasmkilnError as failure:
            explained = self._table.explained(engine_id, failure)
            self._record(job, engine_id, explained.reason)
            raise explained from None
        except Exception:
            self._record(job, engine_id, Reason.INTERNAL)
            raise

    def _record(self, job: Job, engine_id: str, outcome: Reason | None) -> None:
        """Record the end of a compile; ``outcome`` is None if the engine made code."""
        took_s = time.monotonic() - job.asked_s
        queued_s = took_s if job.queued_s is None else job.queued_s
        said = outcome.value.lower() if outcome else "ok"
        self._recorder.compiled(engine_id, said, took_s - queued_s, queued_s)

    async def _explained(
        self, spec: CompileSpec, module: Module, waiters: Waiters, found: Verdict
    ) -> WasmkilnError:
        """Return the error for what an engine refused to compile; see ``Refused``.

        Ask no engine about what a fast compiler lacks: it says nothing about the module, and the
        caller may be waiting for the optimised artifact instead.
        """
        engine = self._table.known[spec.engine.id]
        if spec.is_fast and engine.takes(module.kind) and found.outcome is Outcome.UNSUPPORTED:
            return errors.fast_compiler_lacks_feature(
                engine.id,
                found.message,
                found.offset,
                found.feature,
                # An engine that validates components by compiling them has not validated it.
                valid=module.kind not in _VALIDATED_BY_COMPILING,
            )
        changed = bool(spec.changed_settings)
        return await self._refusal(engine, module, found, waiters, changed=changed)

    async def _refusal(
        self,
        engine: ServedEngine,
        module: Module,
        refused: Verdict,
        waiters: Waiters,
        *,
        changed: bool = False,
    ) -> WasmkilnError:
        """Return MODULE_INVALID, or ENGINE_LACKS_FEATURE if another engine accepts the module.

        Settings that were ``changed`` may switch a proposal off: then the engine itself is asked
        too, with its defaults. Raises COMPILE_QUEUE_FULL or SERVER_DRAINING where no engine accepts
        the module and one could not be asked: a verdict without it could be wrong.
        """
        # A refusal is not stored, so stop if no caller waits any more.
        waiters.release()
        if not waiters.waiting:
            return errors.server_draining()
        others = [each for each in self._table.served.values() if each.id != engine.id]
        if changed and refused.outcome is Outcome.INVALID:
            others.append(engine)
        asked = (self._opinion(other, engine, module, refused, waiters) for other in others)
        opinions = list(zip(others, await asyncio.gather(*asked), strict=True))
        takes_kind = engine.takes(module.kind)
        accepted_by = [
            other.id
            for other, opinion in opinions
            if (isinstance(opinion, Verdict) and opinion.outcome is Outcome.VALID)
            # It reached no verdict, and the module is of a kind that only others run.
            or (opinion is None and not takes_kind and other.takes(module.kind))
        ]
        for _, opinion in opinions:
            if isinstance(opinion, WasmkilnError) and not accepted_by:
                raise opinion
        verdicts = [(engine, refused)] if takes_kind else []
        verdicts += [(other, each) for other, each in opinions if isinstance(each, Verdict)]
        feature = "" if accepted_by else _lacked_by_all(verdicts)
        invalid = verdicts and all(each.outcome is Outcome.INVALID for _, each in verdicts)
        if accepted_by or feature or not invalid:
            return errors.engine_lacks_feature(
                engine.id, refused.message, accepted_by, refused.offset, feature or refused.feature
            )
        engine, refused = verdicts[0]
        return errors.module_invalid(engine.id, refused.message, refused.offset)

    async def _opinion(
        self,
        other: ServedEngine,
        engine: ServedEngine,
        module: Module,
        refused: Verdict,
        waiters: Waiters,
    ) -> Verdict | WasmkilnError | None:
        """Return another engine's verdict; None if it has none, an error if it was not asked."""
        if not other.takes(module.kind):
            return None
        # A module that the engine calls valid and does not compile is valid for its other
        # versions too. To name a version that compiles it, the daemon has to try.
        by_compiling = refused.outcome is Outcome.UNSUPPORTED and other.name == engine.name
        limits = self._limits.current
        cpu_s = min(limits.compile_cpu_s, _SECOND_OPINION_CPU_S)
        limits = replace(limits, compile_cpu_s=cpu_s)
        op = "compile" if by_compiling else "validate"
        waiters.quota.opinion()
        try:
            return await self._ask(other, op, module, limits, waiters)
        except WasmkilnError as failure:
            return failure if failure.reason in _NOT_ASKED else None

    async def _ask(
        self, engine: ServedEngine, op: str, module: Module, limits: Limits, waiters: Waiters
    ) -> Verdict:
        """Return the verdict of an engine with its default settings.

        Raises the errors of Load for a job that reached no verdict.
        """
        if not engine.takes(module.kind):
            return _no_such_kind(module.kind)
        host = engine.capabilities.host_triple
        order = job_orders.on_module(op, module, host, NATIVE, {}, limits)
        try:
            report, _ = await engine.pool.run(order, waiters)
            return verdict.read(report, engine.id, "validating", limits)
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


def _no_such_kind(kind: Kind) -> Verdict:
    if kind is Kind.COMPONENT:
        return Verdict(
            Outcome.UNSUPPORTED, "it is a component, and this engine runs core modules only"
        )
    return Verdict(Outcome.UNSUPPORTED, "this engine does not run core modules")
