"""The engines port: choose an engine for a request, and have its workers compile or validate."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

from wasmkilnd import errors
from wasmkilnd.engines.compilation import CompilationRecord, ModuleWorker, RefusedModule
from wasmkilnd.engines.names import NameChoices, Names, resolve
from wasmkilnd.engines.scheduling.ticket import Unless
from wasmkilnd.engines.second_opinions import SecondOpinions
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.table import EngineTable
from wasmkilnd.engines.verdicts.verdict import Outcome
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Limits, Module
from wasmkilnd.ports import Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters


class EngineRegistry:
    """Every engine that the daemon serves. See the port ``Engines`` for what it promises."""

    def __init__(
        self,
        served: Sequence[ServedEngine],
        choices: NameChoices,
        limits: Reloadable[Limits],
        recorder: Recorder,
        unserved: Sequence[str] = (),
    ) -> None:
        """Serve ``served``, the preferred ones first; see ``names.resolve``.

        Raises ENGINE_UNKNOWN when the default is neither served nor among ``unserved``.
        """
        try:
            names = resolve(choices, served, unserved)
        except LookupError:
            ids = [engine.id for engine in served]
            raise errors.engine_unknown(choices.default, ids) from None
        self._table = EngineTable(served, names)
        self._table.removed = choices.removed
        self.choices = choices
        """What decides which engine a name stands for."""
        self._limits = limits
        self._recorder = recorder
        self._opinions = SecondOpinions(self._table, limits)

    def view(self, recorder: Recorder) -> EngineRegistry:
        """Return the same engines and workers, with verdicts of its own, counting in ``recorder``.

        The verdicts that one view's callers cause are not known to those of another.
        """
        other = copy.copy(self)
        other._recorder = recorder
        other._opinions = SecondOpinions(self._table, self._limits)
        return other

    def serve(
        self, served: Sequence[ServedEngine], unserved: Sequence[str], choices: NameChoices
    ) -> None:
        """Serve these from now on, in all views; work that chose another one goes on.

        Unlike at the start, a default that is in neither list is no failure: requests that
        name no engine are refused.
        """
        try:
            names = resolve(choices, served, unserved)
        except LookupError:
            names = replace(resolve(replace(choices, default=""), served, unserved), default="")
        self.choices = choices
        self._table.serve(served, names)
        self._table.removed = choices.removed

    def end(self, engine: ServedEngine) -> None:
        """Refuse all further work of an engine that is not served any more."""
        self._table.end(engine)

    @property
    def served(self) -> Sequence[ServedEngine]:
        """Every engine, in the order in which they are listed."""
        return tuple(self._table.served.values())

    @property
    def default(self) -> str:
        """The id of the engine for requests that name none; empty when it is not served."""
        return self._table.names.default

    @property
    def resolved(self) -> Names:
        """What each name stands for, and the default."""
        return self._table.names

    @property
    def names(self) -> Mapping[str, str]:
        """Which engine each name stands for."""
        return self._table.names.by_name

    def choose(self, engine: str, kind: Kind | None) -> str:
        """Return the id of the engine that a request names.

        Raises ENGINE_UNKNOWN, or ENGINE_REMOVED for one that was served before.
        A request that names none gets the default. If the default runs no modules of this kind
        (components, for example), it gets the first engine that does.
        """
        if found := self._table.ids.get(engine):
            return found
        if engine:
            raise self._table.not_served(engine)
        served, default = self._table.served, self._table.names.default
        if not default:
            raise errors.engine_unknown(self.choices.default, served)
        if kind is None or served[default].takes(kind):
            return default
        for candidate in served.values():
            if candidate.takes(kind):
                return candidate.id
        return default

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """Complete a request with defaults. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""
        return self._table.known[engine_id].spec(target, cpu, settings)

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler; None if there is no such choice."""
        return self._table.known[spec.engine.id].fast(spec, settings)

    @asynccontextmanager
    async def worker(
        self, spec: CompileSpec, module: Module, waiters: Waiters, *, unless: Unless
    ) -> AsyncIterator[ModuleWorker | None]:
        """Wait for a worker to compile ``module``; yield None if ``unless`` returns first.

        Raises the errors of Compile: a refusal that was remembered, or why there is no worker.
        """
        if refusal := self._opinions.known_refusal(spec, module):
            raise await RefusedModule(self._opinions, spec, module, waiters, refusal).explained()
        size_bytes, limits = self._opinions.known_oversize(spec, module), self._limits.current
        if size_bytes > limits.artifact_bytes:
            raise errors.artifact_too_large(spec.engine.id, size_bytes, limits.artifact_bytes)
        order = job_orders.on_module(
            "compile", module, spec.target, spec.cpu, spec.changed_settings, limits
        )
        record = CompilationRecord(self._recorder, spec.engine.id, self._table)
        async with AsyncExitStack() as stack:
            with record.failures():
                pool = self._table.working(spec.engine.id).pool
                waiting = pool.worker(order, waiters, unless=unless)
                lent = await stack.enter_async_context(waiting)
            if lent is None:
                yield None
                return
            record.worker = lent
            yield ModuleWorker(self._opinions, record, lent, spec, module, waiters, limits)

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, others: Waiters | None
    ) -> float:
        """Return how long ``waiter`` would wait for a worker; 0 if one is free."""
        return self._opinions.expected_wait_s(engine_id, module, waiter, others)

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
        found = await self._opinions.verdict(engine_id, module, waiters, watch)
        if found.outcome is not Outcome.VALID:
            raise await self._opinions.refusal(engine_id, module, found, waiters)

    def forget(self, scope: EvictScope) -> None:
        """Forget the verdicts of engines about what ``scope`` names."""
        self._opinions.forget(scope)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._table.known.values()))
