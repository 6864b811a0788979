"""What the served engines think of a module: each asked once, and the answer remembered.

An engine's refusal alone does not tell a broken module from one that is ahead of the engine.
So the others are asked as well, and if one of them accepts the module, it is the engine that
lacks something.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace

from wasmkilnd import errors
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.resolve import resolve
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.verdicts.verdict_cache import Key, VerdictCache
from wasmkilnd.engines.workers import job_orders
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Limits, Module
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.singleflight import SingleFlight
from wasmkilnd.waiters import Waiter, Waiters

# wasmtime's package has no other way to validate them.
_VALIDATED_BY_COMPILING = frozenset({Kind.COMPONENT})
# Validating the worst of 280 hostile core modules took 0.22 s. Only components need more;
# and one whose second opinion costs more than this has to do without.
_SECOND_OPINION_CPU_S = 2.0
# How long an engine that came to no opinion of a module is not asked again.
_NO_OPINION_S = 600.0
_MAX_NO_OPINIONS = 4096

# The engine was not heard: that says nothing about the module.
_NOT_HEARD = frozenset({Reason.COMPILE_QUEUE_FULL, Reason.SERVER_DRAINING})


class SecondOpinions:
    """Every engine's opinions. For one event loop."""

    def __init__(self, served: Mapping[str, ServedEngine], limits: Reloadable[Limits]) -> None:
        self._served = served
        self._limits = limits
        self._memory = VerdictCache()
        # By question, and whether it is a second opinion: who asks for itself must not get the
        # end of one that has less time, nor wait for its turn.
        self._flights: SingleFlight[tuple[Key, bool], Verdict] = SingleFlight()
        self._no_opinions: OrderedDict[Key, float] = OrderedDict()

    async def of(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> Verdict:
        """Return what an engine with its default settings says of a module.

        ``watch`` is entered for a job that compiles to find out. Raises what it raises, and
        the errors of Load for an engine that came to no verdict.
        """
        return await self._validated(engine_id, module, waiters, watch)

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, others: Waiters | None
    ) -> float:
        """Return how long a caller would wait until an engine's worker looks at its module.

        One that the engine does not take is for the others' workers.
        """
        if self._served[engine_id].takes(module.kind):
            return self._served[engine_id].pool.expected_wait_s(waiter, others)
        waits_s = (
            other.pool.expected_wait_s(waiter, others, second=True)
            for other in self._served.values()
            if other.takes(module.kind) and not self._memory.get((module.sha256, other.id, ""))
        )
        return max(waits_s, default=0.0)

    def refusal_known(self, spec: CompileSpec, module: Module) -> Verdict | None:
        """Return why this module does not compile so, if that needs no worker to tell."""
        engine = self._served[spec.engine.id]
        if not engine.takes(module.kind):
            return _no_such_kind(module.kind)
        said = self._memory.get((module.sha256, engine.id, spec.fingerprint))
        if said is None and not spec.changed_settings:
            said = self._memory.get((module.sha256, engine.id, ""))
        return said if said and said.outcome is not Outcome.VALID else None

    def oversize_known(self, spec: CompileSpec, module: Module) -> int:
        """Return the size in bytes of an artifact that was above its limit; 0 of others.

        It is the same each time: only a higher limit is worth another compilation.
        """
        said = self._memory.get((module.sha256, spec.engine.id, spec.fingerprint))
        return said.oversize_bytes or 0 if said else 0

    def compiled(self, spec: CompileSpec, module: Module, said: Verdict) -> None:
        """Take note of what a compilation said."""
        if said.outcome is not Outcome.VALID or said.oversize_bytes is not None:
            self._memory.put((module.sha256, spec.engine.id, spec.fingerprint), said)
        if said.outcome is not Outcome.UNSUPPORTED and not spec.changed_settings:
            self._memory.put((module.sha256, spec.engine.id, ""), said)

    async def refusal(
        self, engine_id: str, module: Module, said: Verdict, waiters: Waiters
    ) -> WasmkilnError:
        """Tell an invalid module from one that only this engine cannot take.

        The others are asked in the turn that ``waiters`` gives. Raises COMPILE_QUEUE_FULL or
        SERVER_DRAINING where no other accepts the module, and one that might could not be
        asked: a verdict without it could be wrong.
        """
        others = [other for other in self._served if other != engine_id]
        if said.outcome is Outcome.INVALID:
            # With settings that switch a proposal off, the engine itself is another.
            others.append(engine_id)
        opinions = dict(
            zip(
                others,
                await asyncio.gather(
                    *(self._second(other, engine_id, module, said, waiters) for other in others)
                ),
                strict=True,
            )
        )
        takes_kind = self._served[engine_id].takes(module.kind)
        accepted_by = [
            other
            for other, opinion in opinions.items()
            if (isinstance(opinion, Verdict) and opinion.outcome is Outcome.VALID)
            # Nothing is known against it, and it is the kind of engine that is needed.
            or (opinion is None and not takes_kind and self._served[other].takes(module.kind))
        ]
        for opinion in opinions.values():
            if isinstance(opinion, WasmkilnError) and not accepted_by:
                raise opinion
        if accepted_by:
            return errors.engine_lacks_feature(
                engine_id, said.message, accepted_by, said.offset, said.feature
            )
        heard = [(engine_id, said)] if takes_kind else []
        heard += [(other, one) for other, one in opinions.items() if isinstance(one, Verdict)]
        feature = self._lacked_by_all(heard)
        all_invalid = all(one.outcome is Outcome.INVALID for _, one in heard)
        if feature or not heard or not all_invalid:
            return errors.engine_lacks_feature(
                engine_id, said.message, [], said.offset, feature or said.feature
            )
        engine_id, said = heard[0]
        return errors.module_invalid(engine_id, said.message, said.offset)

    def _lacked_by_all(self, heard: Sequence[tuple[str, Verdict]]) -> str:
        """Return the feature that the module needs and none of the engines has; "" if none.

        An engine that has the feature, and calls the module invalid for another reason, has
        read past the place where the other stopped: the module is invalid.
        """
        features = {one: self._served[one].capabilities.wasm_features for one, _ in heard}
        for _, said in heard:
            overruled = any(
                said.feature in features[other] for other, theirs in heard if theirs is not said
            )
            if said.feature and not overruled:
                return said.feature
        return ""

    def forget(self, scope: EvictScope) -> None:
        """Forget what engines said of what ``scope`` names."""
        for key in [*self._memory, *self._no_opinions]:
            if scope.module_sha256 in ("", key[0]) and scope.engine_id in ("", key[1]):
                self._memory.forget(key)
                self._no_opinions.pop(key, None)

    async def _validated(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
        *,
        second: bool = False,
    ) -> Verdict:
        engine = self._served[engine_id]
        if not engine.takes(module.kind):
            return _no_such_kind(module.kind)
        key = (module.sha256, engine_id, "")

        async def ask(waiters: Waiters) -> Verdict:
            host = engine.capabilities.host_triple
            limits = self._limits_of(second)
            order = job_orders.on_module("validate", module, host, NATIVE, {}, limits)
            # Within the flight: a failure that many callers are told is one strike.
            async with watch if module.kind in _VALIDATED_BY_COMPILING else nullcontext():
                report, _ = await engine.pool.run(order, waiters, second=second)
                said = verdict.read(report, engine_id, "validating", limits)
            self._memory.put(key, said)
            return said

        known = self._memory.get(key)
        return known or await self._flights.join((key, second), waiters, ask).wait()

    async def _compiles(
        self, engine: ServedEngine, module: Module, spec: CompileSpec, waiters: Waiters
    ) -> Verdict:
        async def ask(waiters: Waiters) -> Verdict:
            limits = self._limits_of(second=True)
            order = job_orders.on_module("compile", module, spec.target, spec.cpu, {}, limits)
            report, _ = await engine.pool.run(order, waiters, second=True)
            said = verdict.read(report, engine.id, "compiling", limits)
            self.compiled(spec, module, said)
            return said

        key = (module.sha256, engine.id, spec.fingerprint)
        return await self._flights.join((key, True), waiters, ask).wait()

    def _limits_of(self, second: bool) -> Limits:
        limits = self._limits.current
        cpu_s = min(limits.compile_cpu_s, _SECOND_OPINION_CPU_S)
        return replace(limits, compile_cpu_s=cpu_s) if second else limits

    async def _second(
        self, other: str, engine_id: str, module: Module, said: Verdict, waiters: Waiters
    ) -> Verdict | WasmkilnError | None:
        """Return another engine's opinion, None if it has none, an error if it was not heard."""
        engine = self._served[other]
        if not engine.takes(module.kind):
            return None
        spec = resolve(engine.capabilities, "", "", {})
        refused = self.refusal_known(spec, module)
        if refused is not None:
            return refused
        # What validates there and then does not compile does so in other versions too: to
        # name one that compiles it, it has to be tried.
        by_compiling = (
            said.outcome is Outcome.UNSUPPORTED
            and engine.capabilities.identity.name
            == self._served[engine_id].capabilities.identity.name
        )
        key = (module.sha256, other, spec.fingerprint if by_compiling else "")
        if self._no_opinions.get(key, 0.0) > time.monotonic():
            return None
        try:
            if by_compiling:
                return await self._compiles(engine, module, spec, waiters)
            return await self._validated(other, module, waiters, nullcontext(), second=True)
        except WasmkilnError as failure:
            if failure.reason in _NOT_HEARD:
                return failure
            if failure.reason is Reason.WORKER_UNAVAILABLE:
                return None  # It may be gone for long, and is asked again when it is there.
        self._no_opinions[key] = time.monotonic() + _NO_OPINION_S
        if len(self._no_opinions) > _MAX_NO_OPINIONS:
            self._no_opinions.popitem(last=False)
        return None


def _no_such_kind(kind: Kind) -> Verdict:
    if kind is Kind.COMPONENT:
        return Verdict(
            Outcome.UNSUPPORTED, "it is a component, and this engine runs core modules only"
        )
    return Verdict(Outcome.UNSUPPORTED, "this engine does not run core modules")
