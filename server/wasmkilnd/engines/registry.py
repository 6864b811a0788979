"""Every engine that is served: what a request means for one, and what they do with a module.

A reload changes which engines requests can choose, while calls run.

An engine's refusal alone does not tell a broken module from one that is ahead of the engine.
So each other engine is asked to validate it, once, as a job of the same caller. If one of them
accepts the module, the refusing engine lacks a feature; otherwise the module is invalid. Nothing
of that is remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeAlias

from wasmkilnd import errors, model, wire
from wasmkilnd.engines import fits, verdict
from wasmkilnd.engines.child import section
from wasmkilnd.engines.child.cpu import NATIVE, PORTABLE
from wasmkilnd.engines.child.describe import ADDERS
from wasmkilnd.engines.child.section import Section
from wasmkilnd.engines.job import order_on
from wasmkilnd.engines.names import NameChoices, resolve
from wasmkilnd.engines.pool import Job, Ready, Unless, WorkerPool
from wasmkilnd.engines.verdict import CompiledCode, Outcome, Verdict
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files.threads import on_disk
from wasmkilnd.model import FAST_SETTINGS, CompileSpec, EngineCapabilities, Kind, Limits, Module
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.flights import Waiters

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
_NOT_ASKED = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.JOB_ENDED, Reason.SERVER_DRAINING})
# Callers ask for the same few specs again and again, and to compute a fingerprint costs as much
# as a cache hit.
_REMEMBERED_SPECS = 1024
_ADDER = Module("", Kind.CORE_MODULE, bytes.fromhex(ADDERS["core"]))
# How a job or a worker ends whose engine's files are not there any more.
_BY_REMOVAL = frozenset({Reason.COMPILER_CRASHED, Reason.WORKER_UNAVAILABLE})

# A compilation that an engine refused: asks other engines why, and returns the caller's error.  If
# no caller waits any more, it asks none and returns SERVER_DRAINING, which no caller reads. It
# raises COMPILE_QUEUE_FULL, JOB_ENDED or SERVER_DRAINING if an engine could not be asked.
Refused: TypeAlias = "Callable[[], Coroutine[Any, Any, WasmkilnError]]"


@dataclass(eq=False)
class ServedEngine:
    """One engine version with its workers."""

    capabilities: EngineCapabilities
    pool: WorkerPool
    # Returns whether the engine's files are still there.
    is_installed: Callable[[], bool] = lambda: True

    def __post_init__(self) -> None:
        # The id by which a request names the engine, and its name without the version.
        self.id, self.name = self.capabilities.identity.id, self.capabilities.identity.name
        name, value = FAST_SETTINGS.get(self.name, ("", ""))
        offered = self.capabilities.settings
        # Whether the engine has a fast compiler that works here, and all that a request can choose.
        self.has_fast = any(each.name == name and value in each.allowed for each in offered)
        self.compilers = {self.capabilities.identity.compiler, *([value] * self.has_fast)}
        self.completed = lru_cache(_REMEMBERED_SPECS)(partial(_resolve, self.capabilities))

    def takes(self, kind: Kind) -> bool:
        """Return whether the engine runs modules of this kind at all."""
        return kind in self.capabilities.kinds

    def spec(self, target: str, cpu: str, settings: Mapping[str, str]) -> CompileSpec:
        """Check a request against the engine's capabilities, and fill in the defaults.

        Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN.
        """
        return self.completed(target, cpu, tuple(sorted(settings.items())))

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler; None if there is no such choice.

        ``settings`` are those of the request: where they name a compiler, it is chosen.
        """
        name, value = FAST_SETTINGS.get(self.name, ("", ""))
        if not self.has_fast or name in settings:
            return None
        try:
            return self.spec(spec.target, spec.cpu, {**spec.changed_settings, name: value})
        except WasmkilnError:  # SETTING_UNKNOWN: not for this target
            return None


def _resolve(
    capabilities: EngineCapabilities, target: str, cpu: str, settings: tuple[tuple[str, str], ...]
) -> CompileSpec:
    engine_id = capabilities.identity.id
    targets = {each.triple: each for each in capabilities.targets}
    chosen = targets.get(target or next((one for one in targets if targets[one].host), ""))
    if chosen is None:
        raise errors.target_unsupported(engine_id, target, list(targets))
    cpu = cpu or chosen.cpus[0]
    if cpu not in chosen.cpus:
        raise errors.cpu_unsupported(engine_id, chosen.triple, cpu, chosen.cpus)
    offered = (*capabilities.settings, *chosen.settings)  # a target's own come last, and count
    known = {setting.name: setting for setting in offered}
    in_force = {name: setting.default for name, setting in known.items()}
    changed = {}
    for name, value in settings:
        if name not in in_force:
            raise errors.setting_unknown(engine_id, name, in_force)
        if not known[name].takes(value):
            target, allowed = "" if chosen.host else chosen.triple, known[name].allowed
            raise errors.setting_value_unknown(engine_id, name, value, allowed, target)
        if value != in_force[name]:
            in_force[name] = changed[name] = value
    features = capabilities.host_cpu_features if cpu == NATIVE else ()
    digest = model.fingerprint(capabilities.identity, chosen.triple, cpu, features, in_force)
    return CompileSpec(capabilities.identity, chosen.triple, cpu, in_force, changed, digest)


class EngineRegistry:
    """Every engine that the daemon serves, and what they do with modules. For one event loop.

    Whatever a module does to an engine, only the calls about that module fail, and each with a
    WasmkilnError.
    """

    def __init__(self, limits: model.Reloadable[Limits]) -> None:
        """Serve nothing yet."""
        self._limits = limits
        # By id, also those that are served no more: work that chose one of them goes on.
        self._known: dict[str, ServedEngine] = {}
        # What hosts' engines load.
        self.fits = fits.Fits()
        self.serve([], NameChoices())

    def serve(self, served: Sequence[ServedEngine], choices: NameChoices) -> None:
        """Let requests choose among ``served`` from now on, the preferred ones first.

        ``choices`` decide what a name stands for. Work that chose another engine goes on.
        """
        names = resolve(choices, [engine.id for engine in served])
        self.choices, self.resolved = choices, names
        # The engine for requests that name none, empty if it is not served; and by name.
        self.default, self.names = names.default, names.by_name
        order = sorted(served, key=lambda engine: names.by_name.get(engine.name) != engine.id)
        # In the order in which they are listed: first those that names stand for.
        self.served: Sequence[ServedEngine] = tuple(order)
        self._served = {each.id: each for each in order}
        self._known |= self._served
        named = {name: each for name, each in names.by_name.items() if each in self._served}
        # Of engines of one version, the one that hosts get code of.
        learned = [(each.id, one) for each in order for one in each.capabilities.compared]
        self._nearest = frozenset({one.version: each for each, one in reversed(learned)}.values())
        for engine_id, mine in learned:
            # A host with the defaults, on such a machine.
            usual, _ = fits.fit(engine_id, mine, fits.usual(mine))
            if usual and engine_id in self._nearest:
                self.fits.known[mine.keys.get(NATIVE) or usual.made] = usual
        # The id of what is served by each word that a request may name it by: id or name.
        self._ids = named | {each: each for each in self._served}

    def choose(self, engine: str, kind: Kind | None) -> str:
        """Return the id of the engine that a request names.

        ``kind`` is None while only the module's digest is known. Raises ENGINE_UNKNOWN, or
        ENGINE_REMOVED for one that was served before.
        A request that names none gets the default. If the default runs no modules of this kind
        (components, for example), it gets the first engine that does.
        """
        if found := self._ids.get(engine):
            return found
        if engine:
            raise self._not_served(self.names.get(engine, engine))
        default = self.default
        if not default:
            raise errors.engine_unknown(self.choices.default, self._served)
        if kind is None or self._served[default].takes(kind):
            return default
        return next((each.id for each in self.served if each.takes(kind)), default)

    def fitting(
        self,
        shown: bytes,
        caller: str,
        engine: str,
        target: str,
        cpu: str,
        settings: Mapping[str, str],
    ) -> CompileSpec:
        """Return what to compile for a host whose engine shows a section, or a key of one.

        The rest of the request may be empty. Raises INVALID_REQUEST where it contradicts, and for
        what is no section; COMPATIBILITY_UNKNOWN and COMPATIBILITY_UNSUPPORTED; ENGINE_UNKNOWN.
        """
        fit = self.fits.get(shown)
        if not fit or not (spec := self.code_for(fit)):
            if len(shown) == fits.KEY_BYTES:
                raise errors.compatibility_unknown()
            fit = self._fit(fits.read(shown))
            self.fits.keep(shown, caller, fit)
            spec = self.spec(*fit.code)
        if not (engine or target or cpu or settings):
            return spec
        engine_id = self.choose(engine, None) if engine else fit.engine_id
        mine = self._compared(fit)
        versions = {each.version for each in self._served[engine_id].capabilities.compared}
        wrong = {
            "engine": mine.version not in versions,
            "target": target and target != fit.target,
            "cpu": cpu and cpu not in fit.cpus,
            "settings": any(fits.contradicts(mine, *each, spec) for each in settings.items()),
        }
        for field in (name for name, is_wrong in wrong.items() if is_wrong):
            what = f"cannot compile: {field} contradicts compatibility, which is of an engine that"
            gets = f"gets code of {fit.engine_id}, {fit.target}, {'/'.join(fit.cpus)}"
            gets += "".join(f", {name}={value}" for name, value in fit.settings.items())
            raise errors.invalid_request(f"{what} {gets}: leave {field} out", field)
        chosen = {**fit.settings, **settings}
        return self.spec(engine_id, fit.target, cpu or fit.cpus[0], chosen)

    async def confirm(self, shown: bytes, caller: str, waiters: Waiters) -> None:
        """Compile a function for a host, and compare what its code says of itself.

        Not the empty module: some engines with Winch compile nothing else.

        Raises COMPATIBILITY_UNSUPPORTED, and the errors of Load; COMPATIBILITY_UNKNOWN for a key,
        whose section was shown for what tiers hold, or in a FindMissing.
        """
        if len(shown) == fits.KEY_BYTES:
            raise errors.compatibility_unknown()
        host = fits.read(shown)
        fit = self._fit(host)
        spec, limits = self.spec(*fit.code), self._limits.current
        order = {"op": "compile", "target": spec.target, "cpu": spec.cpu}
        settings, engine_id = dict(spec.changed_settings), fit.engine_id
        job = Job(order_on(_ADDER, limits, **order, settings=settings), waiters)
        waiters.quota.opinion()
        try:
            report = await self._known[engine_id].pool.run(job)
            found = verdict.read(report, engine_id, "compiling", limits)
        except WasmkilnError as failure:
            if failure.reason is not Reason.SETTING_UNKNOWN:
                raise await self._explained(engine_id, failure) from None
            found = Verdict(Outcome.UNSUPPORTED, failure.message)
        if found.outcome is not Outcome.VALID:
            named = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
            why = f"{engine_id} compiles nothing with {named}: {found.message}"
            raise errors.compatibility_unsupported(engine_id, [why])
        code = verdict.compiled_code(report, engine_id, 0.0).code
        made = section.in_artifact(b"".join(wire.payload_views(code.frames)))
        if lacking := fits.differences(self._compared(fit), fits.read(made).rest, host.rest):
            raise errors.compatibility_unsupported(engine_id, lacking)
        key = hashlib.sha256(made).hexdigest()
        self.fits.keep(shown, caller, replace(fit, made=key))

    def made_for(self, shown: bytes, spec: CompileSpec) -> str:
        """Return the key of what a host's code says of itself, if it is of ``spec`` and known."""
        fit = self.fits.get(shown)
        code = self.code_for(fit) if fit else None
        return fit.made if fit and code and code.fingerprint == spec.fingerprint else ""

    def _compared(self, fit: fits.Fit) -> model.Compared:
        compared = self._known[fit.engine_id].capabilities.compared
        return next(each for each in compared if each.target == fit.target)

    def code_for(self, fit: fits.Fit) -> CompileSpec | None:
        """Return what hosts get now; None where an older daemon recorded what is not made here."""
        try:
            return self.spec(*fit.code) if fit.engine_id in self._nearest else None
        except WasmkilnError:
            return None

    def _fit(self, host: Section) -> fits.Fit:
        """Return the code for a host. Raises COMPATIBILITY_UNSUPPORTED."""
        compared = [(each, mine) for each in self.served for mine in each.capabilities.compared]
        if not compared:
            here = ", ".join(each.id for each in self.served)
            raise errors.compatibility_unsupported(here, [f"{here} does not say what it compares"])
        nearest, mine = max(compared, key=lambda each: fits.nearness(each[1], host))
        fit, why = fits.fit(nearest.id, mine, host)
        if fit and not why:
            try:
                self.spec(*fit.code)
            except WasmkilnError as unknown:
                why = [unknown.message]
        if why or not fit:
            raise errors.compatibility_unsupported(nearest.id, why)
        return fit

    def _not_served(self, engine: str) -> WasmkilnError:
        """Return ENGINE_UNKNOWN for an id or a name; ENGINE_REMOVED for what was served before.

        Also before this daemon started.
        """
        known = self._known
        before = {*self.choices.removed, *known, *(each.name for each in known.values())}
        error = errors.engine_removed if engine in before else errors.engine_unknown
        return error(engine, self._served)

    async def _explained(self, engine_id: str, failure: WasmkilnError) -> WasmkilnError:
        """Return ENGINE_REMOVED for what broke because the engine's files or workers are gone."""
        ended = failure.reason is Reason.SERVER_DRAINING and engine_id not in self._served
        broken = failure.reason in _BY_REMOVAL
        if not ended and (not broken or await on_disk(self._known[engine_id].is_installed)):
            return failure
        others = [each.id for each in self.served if each.id != engine_id]
        return errors.engine_removed(engine_id, others)

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """Complete a request with defaults. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""
        return self._known[engine_id].completed(target, cpu, tuple(sorted(settings.items())))

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler.

        Return None if the engine has none, or if ``settings``, those of the request, choose a
        compiler.
        """
        return self._known[spec.engine.id].fast(spec, settings)

    async def compile(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        metrics: Metrics,
        *,
        ready: Ready,
        unless: Unless,
    ) -> CompiledCode | Refused | None:
        """Compile ``module`` in a worker, in the turn of ``waiters``; count in ``metrics``.

        Once a worker is free, ``ready`` is awaited, with how long the module waited for it.
        Return None if that returns False, or if ``unless`` returns before. Raises the errors of
        Compile, and what ``ready`` and ``unless`` raise.
        """
        engine = self._known[spec.engine.id]
        refused = partial(self._refusal, engine, module, waiters, spec=spec)
        if not engine.takes(module.kind):
            return partial(refused, _NO_SUCH_KIND)
        limits = self._limits.current
        order = {"op": "compile", "target": spec.target, "cpu": spec.cpu}
        settings = dict(spec.changed_settings)
        job = Job(order_on(module, limits, **order, settings=settings), waiters)
        code = None
        steps = ExitStack()
        about = steps.enter_context(tracing.step("queue", engine=engine.id, outcome="stored"))

        async def began(queued_s: float) -> bool:
            nonlocal about
            about["outcome"] = "worker"
            steps.close()
            needed = await ready(queued_s)
            if needed:
                step = tracing.step("compile", engine=engine.id, module_bytes=module.size_bytes)
                about = steps.enter_context(step)
            return needed

        def record(outcome: str) -> None:
            took_s = time.monotonic() - job.asked_s
            queued_s = took_s if job.queued_s is None else job.queued_s
            metrics.compiled(engine.id, outcome, took_s - queued_s, queued_s)

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
            failure = await self._explained(engine.id, failure)
            if failure.reason is not Reason.MODULE_QUARANTINED:  # ``ready`` said that.
                record(failure.reason.value.lower())
            raise failure from None
        except Exception:
            record("internal")
            raise
        record(_RECORDED[found.outcome])
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
        engine, found = self._known[engine_id], _NO_SUCH_KIND
        with tracing.step("validate", engine=engine.id, module_bytes=module.size_bytes) as about:
            if engine.takes(module.kind):
                async with watch if module.kind in _VALIDATED_BY_COMPILING else nullcontext():
                    limits = self._limits.current
                    found = await self._ask(engine, "validate", module, waiters, limits)
            if found.outcome is not Outcome.VALID:
                raise await self._refusal(engine, module, waiters, found)
            about["outcome"] = "ok"

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
        caller may be waiting for the optimised artifact instead. Nor about what the portable target
        lacks: the engine has validated the module by its native one. Settings that were changed may
        switch a proposal off: then the engine itself is asked too, with its defaults.

        Raises COMPILE_QUEUE_FULL, JOB_ENDED or SERVER_DRAINING where no engine accepts the module
        and one could not be asked: a verdict without it could be wrong.
        """
        takes_kind, unsupported = engine.takes(module.kind), refused.outcome is Outcome.UNSUPPORTED
        portable = spec.target if spec and spec.target == PORTABLE else ""
        if spec and (spec.is_fast or portable) and takes_kind and unsupported:
            # An engine that validates components by compiling them has not validated it.
            by = [] if spec.is_fast and module.kind in _VALIDATED_BY_COMPILING else [engine.id]
            return errors.engine_lacks_feature(
                *(engine.id, refused.message, by, refused.offset, refused.feature or None),
                compiled_for=portable,
                fast=spec.is_fast,
            )
        # A refusal is not stored, so stop if no caller waits any more.
        waiters.release()
        if not waiters.waiting:
            return errors.server_draining()
        others = [each for each in self.served if each.takes(module.kind)]
        if not (spec and spec.changed_settings) or unsupported:
            others = [each for each in others if each.id != engine.id]
        # A module that the engine calls valid and does not compile is valid for its other
        # versions too. To name a version that compiles it, the daemon has to try.
        by_compiling = engine.name if unsupported else ""
        asked = (self._opinion(each, by_compiling, module, waiters) for each in others)
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
            need = refused.offset, feature or refused.feature or None
            return errors.engine_lacks_feature(engine.id, refused.message, accepted_by, *need)
        first, said = verdicts[0]
        return errors.module_invalid(first.id, said.message, said.offset)

    async def _opinion(
        self, other: ServedEngine, by_compiling: str, module: Module, waiters: Waiters
    ) -> Verdict | WasmkilnError | None:
        """Return another engine's verdict; None if it has none, an error if it was not asked."""
        limits, op = self._limits.current, "compile" if other.name == by_compiling else "validate"
        cpu_s = min(limits.compile_cpu_s, _SECOND_OPINION_CPU_S)
        # Nor does it run again alone, for which all engines would have to stop.
        limits = replace(limits, compile_cpu_s=cpu_s, compile_memory_retry_bytes=0)
        waiters.quota.opinion()
        try:
            return await self._ask(other, op, module, waiters, limits)
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
            order = order_on(module, limits, op=op, target=host, cpu=NATIVE, settings={})
            return verdict.read(
                await engine.pool.run(Job(order, waiters)), engine.id, "validating", limits
            )
        except WasmkilnError as failure:
            raise await self._explained(engine.id, failure) from None

    def jobs(self) -> Iterator[tuple[str, Job]]:
        """Yield all jobs, each with the id of its engine."""
        for engine in self._known.values():
            for job in engine.pool.jobs:
                yield engine.id, job

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._known.values()))


def _lacked_by_all(verdicts: Sequence[tuple[ServedEngine, Verdict]]) -> str:
    """Return the feature that the module needs and none of the engines has; "" if none.

    An engine that has the feature, and calls the module invalid for another reason, has
    read past the place where the first engine stopped: the module is invalid.
    """
    for _, found in verdicts:
        others = [engine.capabilities for engine, theirs in verdicts if theirs is not found]
        if found.feature and not any(found.feature in each.wasm_features for each in others):
            return found.feature
    return ""
