"""Every engine that is served: resolves a request's wishes, and has them carried out."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from wasmkilnd import errors
from wasmkilnd.demand import Demand, Wish
from wasmkilnd.engines import orders, verdict
from wasmkilnd.engines.conversation import JobReport
from wasmkilnd.engines.opinions import Opinions
from wasmkilnd.engines.resolve import resolve
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.verdict import Compiled, Opinion, Verdict
from wasmkilnd.errors import DoneElsewhere, Reason, WasmkilnError
from wasmkilnd.in_force import InForce
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Limits, Module
from wasmkilnd.ports import CompiledCode, Recorder

_REASONS = {
    Opinion.INVALID: Reason.MODULE_INVALID,
    Opinion.UNSUPPORTED: Reason.ENGINE_LACKS_FEATURE,
}

# Services ask for the same few again and again, and a fingerprint costs as much as a hit.
_REMEMBERED_SPECS = 1024


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
        self._opinions = Opinions(self._served, limits)
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
            known = resolve(self._served[engine_id].capabilities, target, cpu, settings)
            self._specs[wishes] = known
            if len(self._specs) > _REMEMBERED_SPECS:
                self._specs.popitem(last=False)
        return known

    async def compile(self, spec: CompileSpec, module: Module, demand: Demand) -> CompiledCode:
        """Compile in a worker, in the turn that ``demand`` gives. Raises the errors of Compile."""
        said = self._opinions.refusal_known(spec, module)
        if said is None:
            size = self._opinions.oversize_known(spec, module)
            limit = self._limits.now.artifact_bytes
            if size > limit:
                raise errors.artifact_too_large(spec.engine.id, size, limit)
            report, queued_s, said = await self._compile_on(spec, module, demand)
            if said.opinion is Opinion.VALID:
                return _code(verdict.compiled(report, spec.engine.id), queued_s)
            # What follows may wait for another engine's worker, and explains a refusal only.
            demand.failed()
        demand.release()  # There is nothing to keep: if all have left, this ends here.
        if not demand.wanted:
            raise asyncio.CancelledError
        raise await self._opinions.refusal(spec.engine.id, module, said, demand)

    async def _compile_on(
        self, spec: CompileSpec, module: Module, demand: Demand
    ) -> tuple[JobReport, float, Verdict]:
        """Have one engine compile, and note how it went, without what others say of it."""
        engine = self._served[spec.engine.id]
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
            self._opinions.compiled(spec, module, said)
            if said.oversize_bytes is not None:
                raise errors.artifact_too_large(
                    engine.id, said.oversize_bytes, limits.artifact_bytes
                )
            outcome = _REASONS.get(said.opinion)
            return report, queued_s, said
        except WasmkilnError as failure:
            outcome = failure.reason
            given_up = outcome is Reason.MODULE_QUARANTINED  # While it waited for a worker.
            raise
        except (asyncio.CancelledError, DoneElsewhere):
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

    def expected_wait_s(
        self, engine_id: str, module: Module, wish: Wish, demand: Demand | None
    ) -> float:
        """Answer how long a caller would wait for a worker, 0 where one is free."""
        return self._opinions.expected_wait_s(engine_id, module, wish, demand)

    async def validate(
        self,
        engine_id: str,
        module: Module,
        demand: Demand,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate in a worker, in the turn that ``demand`` gives. Raises the errors of Load.

        ``watch`` is entered for a job that compiles to validate, once however many ask for it.
        """
        said = await self._opinions.of(engine_id, module, demand, watch)
        if said.opinion is not Opinion.VALID:
            raise await self._opinions.refusal(engine_id, module, said, demand)

    def forget(self, scope: EvictScope) -> None:
        """Forget what engines said of what ``scope`` names."""
        self._opinions.forget(scope)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._served.values()))


def _code(compiled: Compiled, queued_s: float) -> CompiledCode:
    answer = compiled.answer
    return CompiledCode(
        payload=compiled.payload,
        compile_time_s=answer.seconds if answer else 0.0,
        queue_time_s=queued_s,
        imports=answer.imports if answer else (),
        exports=answer.exports if answer else (),
        # Without an answer the engine died while it named the types of a complete artifact.
        types_truncated=answer.types_truncated if answer else True,
    )
