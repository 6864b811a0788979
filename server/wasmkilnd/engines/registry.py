"""Every engine that is served: resolves a request's wishes, and has them carried out."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wasmkilnd import errors
from wasmkilnd.demand import Demand, Wish
from wasmkilnd.engines import orders, verdict
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.pool import WorkerPool
from wasmkilnd.engines.process import JobReport
from wasmkilnd.engines.verdict import Opinion, Verdict
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.in_force import InForce
from wasmkilnd.model import CompileSpec, EngineCapabilities, Kind, Limits, Module, TargetInfo
from wasmkilnd.ports import CompiledCode, Recorder

_REASONS = {
    Opinion.INVALID: Reason.MODULE_INVALID,
    Opinion.UNSUPPORTED: Reason.ENGINE_LACKS_FEATURE,
}

K = TypeVar("K")
V = TypeVar("V")

_REMEMBERED_VERDICTS = 4096
# Services ask for the same few again and again, and a fingerprint costs as much as a hit.
_REMEMBERED_SPECS = 1024


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """One engine version with its workers."""

    capabilities: EngineCapabilities
    pool: WorkerPool

    @property
    def id(self) -> str:
        """What a request writes to choose it."""
        return self.capabilities.identity.id


class EngineRegistry:
    """The engines port. ``served`` lists newer versions of a name before older ones."""

    def __init__(
        self,
        served: Sequence[ServedEngine],
        default_engine: str,
        limits: InForce[Limits],
        recorder: Recorder,
        unserved: Sequence[str] = (),
    ) -> None:
        """Serve ``served``; ``default_engine`` is an id, a name, or empty for the usual.

        ``unserved`` are the ids of installed engines that do not work. If the default is
        one of them, requests that name none are refused: no other takes its place unasked.
        Raises ENGINE_UNKNOWN when the default is neither here nor there.
        """
        self._served = {engine.id: engine for engine in served}
        self._limits = limits
        self._recorder = recorder
        self._specs: OrderedDict[tuple[object, ...], CompileSpec] = OrderedDict()
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._wanted_default = default_engine
        self._default = self._choose_default(default_engine, unserved)

    @property
    def served(self) -> Sequence[ServedEngine]:
        """Every engine, in the order in which they are listed."""
        return tuple(self._served.values())

    @property
    def default(self) -> str:
        """The id of the engine for requests that name none; empty when it is not served."""
        return self._default

    def _choose_default(self, wanted: str, unserved: Sequence[str]) -> str:
        if not wanted:
            return self._usual_default()
        try:
            return self._resolve(wanted)
        except WasmkilnError:
            if any(wanted in (engine_id, engine_id.partition("-")[0]) for engine_id in unserved):
                return ""
            raise

    def _usual_default(self) -> str:
        names = {engine.capabilities.identity.name for engine in self._served.values()}
        for name in ("wasmer", "wasmtime"):
            if name in names:
                return self._resolve(name)
        return ""

    def _resolve(self, engine: str) -> str:
        if engine in self._served:
            return engine
        for candidate in self._served.values():  # Newest first.
            if candidate.capabilities.identity.name == engine:
                return candidate.id
        raise errors.engine_unknown(engine, self._served)

    def choose(self, engine: str, kind: Kind | None) -> str:
        """Answer the id of the engine that a request means. Raises ENGINE_UNKNOWN."""
        if engine:
            return self._resolve(engine)
        if not self._default:
            raise errors.engine_unknown(self._wanted_default, self._served)
        if kind is None or kind in self._served[self._default].capabilities.kinds:
            return self._default
        for candidate in self._served.values():
            if kind in candidate.capabilities.kinds:
                return candidate.id
        return self._default

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """Resolve a request's wishes. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""
        wishes = (engine_id, target, cpu, *sorted(settings.items()))
        known = self._specs.get(wishes)
        if known is None:
            known = self._resolve_spec(engine_id, target, cpu, settings)
            _remember(self._specs, wishes, known, _REMEMBERED_SPECS)
        return known

    def _resolve_spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        capabilities = self._served[engine_id].capabilities
        chosen = self._target(capabilities, target)
        cpu = cpu or chosen.cpus[0]
        if cpu not in chosen.cpus:
            raise errors.cpu_unsupported(engine_id, chosen.triple, cpu, chosen.cpus)
        in_force = {setting.name: setting.default for setting in capabilities.settings}
        allowed = {setting.name: setting.allowed for setting in capabilities.settings}
        changed = {}
        for name, value in settings.items():
            if name not in in_force:
                raise errors.setting_unknown(engine_id, name, in_force)
            if value not in allowed[name]:
                raise errors.setting_value_unknown(engine_id, name, value, allowed[name])
            if value != in_force[name]:
                in_force[name] = changed[name] = value
        features = capabilities.host_cpu_features if cpu == NATIVE else ()
        return CompileSpec(
            engine=capabilities.identity,
            target=chosen.triple,
            cpu=cpu,
            settings=in_force,
            changed_settings=changed,
            fingerprint=fingerprint(capabilities.identity, chosen.triple, cpu, features, in_force),
        )

    @staticmethod
    def _target(capabilities: EngineCapabilities, target: str) -> TargetInfo:
        for candidate in capabilities.targets:
            if candidate.triple == target or (not target and candidate.host):
                return candidate
        raise errors.target_unsupported(
            capabilities.identity.id, target, [t.triple for t in capabilities.targets]
        )

    async def compile(self, spec: CompileSpec, module: Module, demand: Demand) -> CompiledCode:
        """Compile in a worker, in the turn that ``demand`` gives. Raises the errors of Compile."""
        engine = self._served[spec.engine.id]
        said = _no_such_kind(module.kind)
        if module.kind in engine.capabilities.kinds:
            report, queued_s, said = await self._compile_on(engine, spec, module, demand)
            if said.opinion is Opinion.VALID:
                return _code(report, engine.id, queued_s)
        raise await self._refusal(engine.id, module, said, demand)

    async def _compile_on(
        self, engine: ServedEngine, spec: CompileSpec, module: Module, demand: Demand
    ) -> tuple[JobReport, float, Verdict]:
        """Have one engine compile, and record how it went, without what others say of it."""
        started = time.monotonic()
        limits = self._limits.now
        queued_s = 0.0
        given_up = False
        outcome: Reason | None = Reason.INTERNAL
        try:
            order = orders.on_module(
                "compile", module, spec.target, spec.cpu, spec.changed_settings, limits
            )
            report, queued_s = await engine.pool.run(order, demand)
            said = verdict.read(report, engine.id, "compiling", limits)
            outcome = _REASONS.get(said.opinion)
            return report, queued_s, said
        except WasmkilnError as failure:
            outcome = failure.reason
            raise
        except asyncio.CancelledError:
            given_up = True  # It did not end, and may never have begun.
            raise
        finally:
            if not given_up:
                self._recorder.compiled(
                    engine.id,
                    outcome.value.lower() if outcome else "ok",
                    time.monotonic() - started - queued_s,
                    queued_s,
                )

    def expected_wait_s(self, engine_id: str, wish: Wish, demand: Demand | None) -> float:
        """Answer how long a caller would wait for a worker, 0 where one is free."""
        return self._served[engine_id].pool.expected_wait_s(wish, demand)

    async def validate(self, engine_id: str, module: Module, demand: Demand) -> None:
        """Validate in a worker, in the turn that ``demand`` gives. Raises the errors of Load."""
        opinion = await self._opinion(engine_id, module, demand)
        if opinion.opinion is not Opinion.VALID:
            raise await self._refusal(engine_id, module, opinion, demand)

    async def _opinion(self, engine_id: str, module: Module, demand: Demand) -> Verdict:
        """Answer what an engine with its default settings says of a module."""
        engine = self._served[engine_id]
        if module.kind not in engine.capabilities.kinds:
            return _no_such_kind(module.kind)
        remembered = self._verdicts.get((module.sha256, engine_id))
        if remembered is not None:
            self._verdicts.move_to_end((module.sha256, engine_id))
            return remembered
        host = next(target for target in engine.capabilities.targets if target.host)
        limits = self._limits.now
        order = orders.on_module("validate", module, host.triple, NATIVE, {}, limits)
        report, _ = await engine.pool.run(order, demand)
        opinion = verdict.read(report, engine_id, "validating", limits)
        _remember(self._verdicts, (module.sha256, engine_id), opinion, _REMEMBERED_VERDICTS)
        return opinion

    async def _refusal(
        self, engine_id: str, module: Module, said: Verdict, demand: Demand
    ) -> WasmkilnError:
        """Tell an invalid module from one that only this engine cannot take."""
        others = [other for other in self._served if other != engine_id]
        if said.opinion is Opinion.INVALID:
            # With settings that switch a proposal off, the engine itself is another.
            others.append(engine_id)
        opinions = await asyncio.gather(
            *(self._opinion(other, module, demand) for other in others), return_exceptions=True
        )
        pairs = [
            (other, opinion)
            for other, opinion in zip(others, opinions, strict=True)
            if isinstance(opinion, Verdict)
        ]
        accepted_by = [other for other, opinion in pairs if opinion.opinion is Opinion.VALID]
        if not accepted_by and module.kind not in self._served[engine_id].capabilities.kinds:
            for other, opinion in pairs:
                if opinion.opinion is Opinion.INVALID:
                    return errors.module_invalid(other, opinion.message, opinion.offset)
        if accepted_by or said.opinion is Opinion.UNSUPPORTED:
            return errors.engine_lacks_feature(engine_id, said.message, accepted_by)
        return errors.module_invalid(engine_id, said.message, said.offset)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._served.values()))


def _remember(memory: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    memory[key] = value
    while len(memory) > limit:
        memory.popitem(last=False)


def _no_such_kind(kind: Kind) -> Verdict:
    if kind is Kind.COMPONENT:
        return Verdict(
            Opinion.UNSUPPORTED, "it is a component, and this engine runs core modules only"
        )
    return Verdict(Opinion.UNSUPPORTED, "this engine does not run core modules")


def _code(report: JobReport, engine_id: str, queued_s: float) -> CompiledCode:
    result = report.result or {}
    if report.artifact is None:
        raise errors.compiler_crashed(engine_id, "sent no artifact", report.last_words)
    return CompiledCode(
        payload=report.artifact,
        compile_time_s=float(result.get("seconds", 0.0)),
        queue_time_s=queued_s,
        imports=_rows(result.get("imports", ())),
        exports=_rows(result.get("exports", ())),
        # Without a result the engine died while it named the types of a complete artifact.
        types_truncated=bool(result.get("types_truncated", report.result is None)),
    )


def _rows(items: Iterable[Sequence[str]]) -> list[tuple[str, str, str, str]]:
    return [(str(i[0]), str(i[1]), str(i[2]), str(i[3])) for i in items]
