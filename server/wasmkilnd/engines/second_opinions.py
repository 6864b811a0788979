"""Verdicts of all engines about a module, and what an engine's refusal means for the caller.

An engine's refusal alone does not tell a broken module from one that is ahead of the engine.
So the daemon asks the other engines too. If one of them accepts the module, the refusing
engine lacks a feature; otherwise the module is invalid. Each engine is asked once, and its
verdict is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.table import EngineTable
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.verdicts.verdict_cache import Key, VerdictCache
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Flights
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Limits, Module
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

# wasmtime's package has no other way to validate them.
_VALIDATED_BY_COMPILING = frozenset({Kind.COMPONENT})
# Validating the worst of 280 hostile core modules took 0.22 s. Only components need more; an
# engine that needs more than this for a second opinion gives none.
_SECOND_OPINION_CPU_S = 2.0
# An engine that reached no verdict on a module is not asked about it again for this long.
_UNDECIDED_S = 600.0
_MAX_UNDECIDED = 4096

# The engine was not asked: that says nothing about the module.
_NOT_ASKED = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.SERVER_DRAINING})

# The engine has no workers, or is not served any more.
_GONE = frozenset({Reason.WORKER_UNAVAILABLE, Reason.ENGINE_REMOVED})


class SecondOpinions:
    """The verdicts of every engine. For one event loop."""

    def __init__(self, engines: EngineTable, limits: Reloadable[Limits]) -> None:
        self._engines = engines
        self._limits = limits
        self._verdicts = VerdictCache()
        # By question, and whether it is a second opinion: a caller that asks for itself must not
        # get the result of a job with less time, nor wait in the queue for second opinions.
        self._flights: Flights[tuple[Key, bool], Verdict] = Flights()
        self._undecided: OrderedDict[Key, float] = OrderedDict()

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, others: Waiters | None
    ) -> float:
        """Return how long a caller would wait until a worker looks at its module.

        Only other engines look at a module of a kind that the engine does not run.
        """
        engine = self._engines.known[engine_id]
        if engine.takes(module.kind):
            return engine.pool.expected_wait_s(waiter, others)
        waits_s = (
            other.pool.expected_wait_s(waiter, others, second=True)
            for other in self._engines.served.values()
            if other.takes(module.kind) and not self._verdicts.get((module.sha256, other.id, ""))
        )
        return max(waits_s, default=0.0)

    def takes(self, engine_id: str, kind: Kind) -> bool:
        """Return whether the engine runs modules of this kind at all."""
        return self._engines.known[engine_id].takes(kind)

    def known_refusal(self, spec: CompileSpec, module: Module) -> Verdict | None:
        """Return why the engine refuses the module, if that is known without asking a worker."""
        engine = self._engines.known[spec.engine.id]
        if not engine.takes(module.kind):
            return _no_such_kind(module.kind)
        known = self._verdicts.get((module.sha256, engine.id, spec.fingerprint))
        if known is None and not spec.changed_settings:
            known = self._verdicts.get((module.sha256, engine.id, ""))
        return known if known and known.outcome is not Outcome.VALID else None

    def known_oversize(self, spec: CompileSpec, module: Module) -> int:
        """Return the size in bytes of an artifact that was above its limit; 0 for others.

        The size is the same each time, so only a higher limit is worth another compilation.
        """
        known = self._verdicts.get((module.sha256, spec.engine.id, spec.fingerprint))
        return known.oversize_bytes or 0 if known else 0

    def remember(self, spec: CompileSpec, module: Module, found: Verdict) -> None:
        """Remember the verdict of a compilation."""
        if found.outcome is not Outcome.VALID or found.oversize_bytes is not None:
            self._verdicts.put((module.sha256, spec.engine.id, spec.fingerprint), found)
        if found.outcome is not Outcome.UNSUPPORTED and not spec.changed_settings:
            self._verdicts.put((module.sha256, spec.engine.id, ""), found)

    def forget(self, scope: EvictScope) -> None:
        """Forget the verdicts of engines about what ``scope`` names."""
        for key in [*self._verdicts, *self._undecided]:
            if scope.module_sha256 in ("", key[0]) and scope.engine_id in ("", key[1]):
                self._verdicts.forget(key)
                self._undecided.pop(key, None)

    async def refusal(
        self, engine_id: str, module: Module, refused: Verdict, waiters: Waiters
    ) -> WasmkilnError:
        """Return MODULE_INVALID, or ENGINE_LACKS_FEATURE if another engine accepts the module.

        The other engines are asked in the turn of ``waiters``. Raises COMPILE_QUEUE_FULL or
        SERVER_DRAINING where no engine accepts the module and one could not be asked: a verdict
        without it could be wrong.
        """
        others = [other for other in self._engines.served if other != engine_id]
        if refused.outcome is Outcome.INVALID:
            # With settings that switch a proposal off: ask the engine with its defaults as well.
            others.append(engine_id)
        asked = (self._second(other, engine_id, module, refused, waiters) for other in others)
        opinions = dict(zip(others, await asyncio.gather(*asked), strict=True))
        takes_kind = self._engines.known[engine_id].takes(module.kind)
        accepted_by = [
            other
            for other, opinion in opinions.items()
            if (isinstance(opinion, Verdict) and opinion.outcome is Outcome.VALID)
            # It reached no verdict, and the module is of a kind that only others run.
            or (
                opinion is None and not takes_kind and self._engines.known[other].takes(module.kind)
            )
        ]
        for opinion in opinions.values():
            if isinstance(opinion, WasmkilnError) and not accepted_by:
                raise opinion
        if accepted_by:
            return errors.engine_lacks_feature(
                engine_id, refused.message, accepted_by, refused.offset, refused.feature
            )
        verdicts = [(engine_id, refused)] if takes_kind else []
        verdicts += [(other, each) for other, each in opinions.items() if isinstance(each, Verdict)]
        feature = self._lacked_by_all(verdicts)
        all_invalid = all(each.outcome is Outcome.INVALID for _, each in verdicts)
        if feature or not verdicts or not all_invalid:
            return errors.engine_lacks_feature(
                engine_id, refused.message, [], refused.offset, feature or refused.feature
            )
        engine_id, refused = verdicts[0]
        return errors.module_invalid(engine_id, refused.message, refused.offset)

    def _lacked_by_all(self, verdicts: Sequence[tuple[str, Verdict]]) -> str:
        """Return the feature that the module needs and none of the engines has; "" if none.

        An engine that has the feature, and calls the module invalid for another reason, has
        read past the place where the first engine stopped: the module is invalid.
        """
        features = {
            each: self._engines.known[each].capabilities.wasm_features for each, _ in verdicts
        }
        for _, found in verdicts:
            overruled = any(
                found.feature in features[other]
                for other, theirs in verdicts
                if theirs is not found
            )
            if found.feature and not overruled:
                return found.feature
        return ""

    async def verdict(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
        *,
        second: bool = False,
    ) -> Verdict:
        """Return the verdict of an engine with its default settings.

        A job that has to compile in order to validate runs inside ``watch``. Raises what
        ``watch`` raises, and the errors of Load for a job that reached no verdict.
        """
        engine = self._engines.working(engine_id)
        if not engine.takes(module.kind):
            return _no_such_kind(module.kind)
        key = (module.sha256, engine_id, "")

        async def ask(waiters: Waiters) -> Verdict:
            host = engine.capabilities.host_triple
            limits = self._limits_of(second)
            order = job_orders.on_module("validate", module, host, NATIVE, {}, limits)
            # Inside the flight: a failure that many callers get is one strike.
            async with watch if module.kind in _VALIDATED_BY_COMPILING else nullcontext():
                try:
                    report, _ = await engine.pool.run(order, waiters, second=second)
                    found = verdict.read(report, engine_id, "validating", limits)
                except WasmkilnError as failure:
                    raise self._engines.explained(engine_id, failure) from None
            self._verdicts.put(key, found)
            return found

        known = self._verdicts.get(key)
        return known or await self._flights.join((key, second), waiters, ask).wait()

    async def _compiles(
        self, engine: ServedEngine, module: Module, spec: CompileSpec, waiters: Waiters
    ) -> Verdict:
        async def ask(waiters: Waiters) -> Verdict:
            limits = self._limits_of(second=True)
            order = job_orders.on_module("compile", module, spec.target, spec.cpu, {}, limits)
            report, _ = await engine.pool.run(order, waiters, second=True)
            found = verdict.read(report, engine.id, "compiling", limits)
            self.remember(spec, module, found)
            return found

        key = (module.sha256, engine.id, spec.fingerprint)
        return await self._flights.join((key, True), waiters, ask).wait()

    def _limits_of(self, second: bool) -> Limits:
        limits = self._limits.current
        cpu_s = min(limits.compile_cpu_s, _SECOND_OPINION_CPU_S)
        return replace(limits, compile_cpu_s=cpu_s) if second else limits

    async def _second(
        self, other: str, engine_id: str, module: Module, refused: Verdict, waiters: Waiters
    ) -> Verdict | WasmkilnError | None:
        """Return another engine's verdict; None if it has none, an error if it was not asked."""
        engine = self._engines.known[other]
        if not engine.takes(module.kind):
            return None
        spec = engine.spec("", "", {})
        known = self.known_refusal(spec, module)
        if known is not None:
            return known
        # A module that the engine calls valid and does not compile is valid for its other
        # versions too. To name a version that compiles it, the daemon has to try.
        by_compiling = (
            refused.outcome is Outcome.UNSUPPORTED
            and engine.name == self._engines.known[engine_id].name
        )
        key = (module.sha256, other, spec.fingerprint if by_compiling else "")
        if self._undecided.get(key, 0.0) > time.monotonic():
            return None
        try:
            if by_compiling:
                return await self._compiles(engine, module, spec, waiters)
            return await self.verdict(other, module, waiters, nullcontext(), second=True)
        except WasmkilnError as failure:
            if failure.reason in _NOT_ASKED:
                return failure
            if failure.reason in _GONE:
                return None  # The engine is asked as soon as it has workers again.
        self._undecided[key] = time.monotonic() + _UNDECIDED_S
        if len(self._undecided) > _MAX_UNDECIDED:
            self._undecided.popitem(last=False)
        return None


def _no_such_kind(kind: Kind) -> Verdict:
    if kind is Kind.COMPONENT:
        return Verdict(
            Outcome.UNSUPPORTED, "it is a component, and this engine runs core modules only"
        )
    return Verdict(Outcome.UNSUPPORTED, "this engine does not run core modules")
