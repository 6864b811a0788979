"""Every engine that is served: resolves a request's wishes, and has them carried out."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.engines.resolve import resolve
from wasmkilnd.engines.scheduling.ticket import Unless
from wasmkilnd.engines.second_opinions import SecondOpinions
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.engines.workers.pool import LentWorker
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Limits, Module
from wasmkilnd.ports import CompiledCode, Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

_REASONS = {
    Outcome.INVALID: Reason.MODULE_INVALID,
    Outcome.UNSUPPORTED: Reason.ENGINE_LACKS_FEATURE,
}

# Services ask for the same few again and again, and a fingerprint costs as much as a hit.
_REMEMBERED_SPECS = 1024


class EngineRegistry:
    """The engines port. ``served`` lists newer versions of a name before older ones."""

    def __init__(
        self,
        served: Sequence[ServedEngine],
        default_engine: str,
        limits: Reloadable[Limits],
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
        self._opinions = SecondOpinions(self._served, limits)
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
        """Return the id of the engine that a request means. Raises ENGINE_UNKNOWN."""
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

    @asynccontextmanager
    async def worker(
        self, spec: CompileSpec, module: Module, waiters: Waiters, *, unless: Unless
    ) -> AsyncIterator[EngineWorker | None]:
        """Wait for a worker that is to compile ``module``, or for ``unless``: then it is None.

        Raises the errors of Compile: what is known against the module already, and what
        keeps it from getting a worker.
        """
        if said := self._opinions.refusal_known(spec, module):
            raise await RefusedModule(self._opinions, spec, module, waiters, said).explained()
        size_bytes, limits = self._opinions.oversize_known(spec, module), self._limits.current
        if size_bytes > limits.artifact_bytes:
            raise errors.artifact_too_large(spec.engine.id, size_bytes, limits.artifact_bytes)
        order = job_orders.on_module(
            "compile", module, spec.target, spec.cpu, spec.changed_settings, limits
        )
        compiling = Compilation(self._recorder, spec.engine.id)
        async with AsyncExitStack() as stack:
            with compiling.failures_recorded():
                waiting = self._served[spec.engine.id].pool.worker(order, waiters, unless=unless)
                lent = await stack.enter_async_context(waiting)
            if lent is None:
                yield None
                return
            yield EngineWorker(self._opinions, compiling, lent, spec, module, waiters, limits)

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, others: Waiters | None
    ) -> float:
        """Return how long a caller would wait for a worker, 0 where one is free."""
        return self._opinions.expected_wait_s(engine_id, module, waiter, others)

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate in a worker, in the turn that ``waiters`` gives. Raises the errors of Load.

        ``watch`` is entered for a job that compiles to validate, once however many ask for it.
        """
        said = await self._opinions.of(engine_id, module, waiters, watch)
        if said.outcome is not Outcome.VALID:
            raise await self._opinions.refusal(engine_id, module, said, waiters)

    def forget(self, scope: EvictScope) -> None:
        """Forget what engines said of what ``scope`` names."""
        self._opinions.forget(scope)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._served.values()))


class Compilation:
    """Takes note of how one compilation went, its wait for a worker included."""

    def __init__(self, recorder: Recorder, engine_id: str) -> None:
        self.queued_s = 0.0
        self._recorder = recorder
        self._engine_id = engine_id
        self._began_s = time.monotonic()

    def ended(self, outcome: Reason | None) -> None:
        """Record that it ended; ``outcome`` is None if it made code."""
        self._recorder.compiled(
            self._engine_id,
            outcome.value.lower() if outcome else "ok",
            time.monotonic() - self._began_s - self.queued_s,
            self.queued_s,
        )

    @contextmanager
    def failures_recorded(self) -> Iterator[None]:
        """Record what is raised meanwhile, unless it is cancelled: then it did not end."""
        try:
            yield
        except WasmkilnError as failure:
            self.ended(failure.reason)
            raise
        except Exception:
            self.ended(Reason.INTERNAL)
            raise


@dataclass(frozen=True, slots=True)
class EngineWorker:
    """A worker that is there to compile one module."""

    _opinions: SecondOpinions
    _compilation: Compilation
    _lent: LentWorker
    _spec: CompileSpec
    _module: Module
    _waiters: Waiters
    _limits: Limits

    @property
    def queued_s(self) -> float:
        """How long the module waited for it."""
        return self._lent.queued_s

    async def compile(self) -> CompiledCode | RefusedModule:
        """Compile the module; return its code, or the engine's refusal.

        Raises the errors of Compile for a job that came to no verdict.
        """
        engine_id = self._spec.engine.id
        with self._compilation.failures_recorded():
            report = await self._lent.run()
            self._compilation.queued_s = self.queued_s
            said = verdict.read(report, engine_id, "compiling", self._limits)
            self._opinions.compiled(self._spec, self._module, said)
            if said.oversize_bytes is not None:
                raise errors.artifact_too_large(
                    engine_id, said.oversize_bytes, self._limits.artifact_bytes
                )
        self._compilation.ended(_REASONS.get(said.outcome))
        if said.outcome is Outcome.VALID:
            return verdict.compiled_code(report, engine_id, self.queued_s)
        return RefusedModule(self._opinions, self._spec, self._module, self._waiters, said)


@dataclass(frozen=True, slots=True)
class RefusedModule:
    """A module that its engine does not compile."""

    _opinions: SecondOpinions
    _spec: CompileSpec
    _module: Module
    _waiters: Waiters
    _said: Verdict

    async def explained(self) -> WasmkilnError:
        """As Refused: other engines are asked, in the turn that the waiters gives."""
        self._waiters.release()  # There is nothing to keep: if all have left, this ends here.
        if not self._waiters.wanted:
            raise asyncio.CancelledError
        return await self._opinions.refusal(
            self._spec.engine.id, self._module, self._said, self._waiters
        )
