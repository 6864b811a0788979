"""Surrounds ports of the request path, and makes a step of a trace of each wait and each job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from wasmkilnd.flights import WaitBudget, Waiters
from wasmkilnd.model import CacheKey, CompileSpec, Kind, Module
from wasmkilnd.ports import Claim, CompiledCode, Engines, Fleet, Recorder, Refused
from wasmkilnd.telemetry.traces import spans
from wasmkilnd.telemetry.traces.spans import Step


class TracedTiers(Recorder):
    """Adds look-ups and writes to the trace, and leaves out all else."""

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """As Recorder."""
        about = {"tier": tier, "what": what, "outcome": outcome}
        spans.lookup(f"lookup {tier}", seconds, about, _failed(outcome))

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """As Recorder."""
        about = {"tier": tier, "outcome": outcome}
        spans.lookup(f"store {tier}", seconds, about, _failed(outcome))

    def value_rejected(self, tier: str, cause: str) -> None:
        """As Recorder."""
        spans.lookup(f"reject {tier}", 0.0, {"tier": tier, "outcome": cause}, "value rejected")


class TracedEngines:
    """Implements Engines."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def choose(self, engine: str, kind: Kind | None) -> str:
        """As Engines."""
        return self._engines.choose(engine, kind)

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """As Engines."""
        return self._engines.spec(engine_id, target, cpu, settings)

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """As Engines."""
        return self._engines.fast(spec, settings)

    async def compile(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        *,
        ready: Callable[[float], Coroutine[Any, Any, bool]],
        unless: Callable[[], Coroutine[Any, Any, None]],
    ) -> CompiledCode | Refused | None:
        """As Engines; the wait for the worker is a step, and so is its job."""
        step: Step | None = Step("queue", engine=spec.engine.id)

        async def traced(queued_s: float) -> bool:
            nonlocal step
            if step:
                step.end("worker")
            step = None
            needed = await ready(queued_s)
            if needed:
                step = Step("compile", engine=spec.engine.id, module_bytes=len(module.wasm))
            return needed

        try:
            found = await self._engines.compile(spec, module, waiters, ready=traced, unless=unless)
        except BaseException as failure:
            if step:
                step.fail(failure)
            raise
        if step and isinstance(found, CompiledCode):
            step.end("ok", artifact_bytes=found.code.size_bytes)
        elif step:
            step.end("refused" if found else "stored")
        return found

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """As Engines; it is a step, with its wait for a worker."""
        step = Step("validate", engine=engine_id, module_bytes=len(module.wasm))
        try:
            await self._engines.validate(engine_id, module, waiters, watch)
        except BaseException as failure:
            step.fail(failure)
            raise
        step.end("ok")


class TracedClaim:
    """Implements Claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    async def stored(self) -> None:
        """As Claim."""
        await self._claim.stored()

    async def take(self) -> bool:
        """As Claim; it is a step."""
        return await self._as_step("lease", self._claim.take(), "granted", "left to another")

    async def wait_for_others(self) -> bool:
        """As Claim; it is a step."""
        waiting = self._claim.wait_for_others()
        return await self._as_step("wait for another daemon", waiting, "stored", "given up")

    def ignore_others(self) -> None:
        """As Claim."""
        self._claim.ignore_others()

    def failed(self) -> None:
        """As Claim."""
        self._claim.failed()

    async def _as_step(self, name: str, work: Coroutine[Any, Any, bool], yes: str, no: str) -> bool:
        step = Step(name)
        try:
            done = await work
        except BaseException as failure:
            step.fail(failure)
            raise
        step.end(yes if done else no)
        return done


class TracedFleet:
    """Implements Fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @asynccontextmanager
    async def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        """As Fleet."""
        async with self._fleet.claim(key, budget, alone=alone) as claim:
            # A claim that is alone asks nobody.
            yield claim if alone else TracedClaim(claim)


def _failed(outcome: str) -> str:
    return outcome if outcome == "error" else ""
