"""One compilation: a worker compiles one module, and the outcome is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.engines.second_opinions import SecondOpinions
from wasmkilnd.engines.table import EngineTable
from wasmkilnd.engines.verdicts import verdict
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.workers.pool import LentWorker
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CompileSpec, Kind, Limits, Module
from wasmkilnd.ports import CompiledCode, Recorder
from wasmkilnd.waiters import Waiters

_REASONS = {
    Outcome.INVALID: Reason.MODULE_INVALID,
    Outcome.UNSUPPORTED: Reason.ENGINE_LACKS_FEATURE,
}


class CompilationRecord:
    """Records how one compilation ended and how long it took, its wait for a worker included."""

    def __init__(self, recorder: Recorder, engine_id: str, engines: EngineTable) -> None:
        self.worker: LentWorker | None = None
        """The worker that compiles, once there is one."""
        self._recorder = recorder
        self._engine_id = engine_id
        self._engines = engines
        self._began_s = time.monotonic()

    def ended(self, outcome: Reason | None) -> None:
        """Record the end; ``outcome`` is None if the engine made code."""
        took_s = time.monotonic() - self._began_s
        queued_s = self.worker.queued_s if self.worker else took_s
        self._recorder.compiled(
            self._engine_id,
            outcome.value.lower() if outcome else "ok",
            took_s - queued_s,
            queued_s,
        )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Record an exception as the end. Do not record cancelled compilations.

        Raises ENGINE_REMOVED for what broke because the engine's files are gone.
        """
        try:
            yield
        except WasmkilnError as failure:
            explained = self._engines.explained(self._engine_id, failure)
            self.ended(explained.reason)
            if explained is failure:
                raise
            raise explained from None
        except Exception:
            self.ended(Reason.INTERNAL)
            raise


@dataclass(frozen=True, slots=True)
class ModuleWorker:
    """A worker that is reserved for compiling one module."""

    _opinions: SecondOpinions
    _record: CompilationRecord
    _lent: LentWorker
    _spec: CompileSpec
    _module: Module
    _waiters: Waiters
    _limits: Limits

    @property
    def queued_s(self) -> float:
        """How long the module waited for the worker."""
        return self._lent.queued_s

    async def compile(self) -> CompiledCode | RefusedModule:
        """Compile the module; return its code, or the engine's refusal.

        Raises the errors of Compile for a job that reached no verdict.
        """
        engine_id = self._spec.engine.id
        with self._record.failures():
            report = await self._lent.run()
            found = verdict.read(report, engine_id, "compiling", self._limits)
            self._opinions.remember(self._spec, self._module, found)
            if found.oversize_bytes is not None:
                raise errors.artifact_too_large(
                    engine_id, found.oversize_bytes, self._limits.artifact_bytes
                )
        self._record.ended(_REASONS.get(found.outcome))
        if found.outcome is Outcome.VALID:
            return verdict.compiled_code(report, engine_id, self.queued_s)
        return RefusedModule(self._opinions, self._spec, self._module, self._waiters, found)


@dataclass(frozen=True, slots=True)
class RefusedModule:
    """A module that its engine does not compile."""

    _opinions: SecondOpinions
    _spec: CompileSpec
    _module: Module
    _waiters: Waiters
    _verdict: Verdict

    async def explained(self) -> WasmkilnError:
        """Ask other engines, in the turn of the waiters; return the error: see ``Refused``.

        Ask none about what a fast compiler lacks: it says nothing about the module, and the caller
        may be waiting for the optimised artifact instead.
        """
        found, engine_id = self._verdict, self._spec.engine.id
        by_fast = self._spec.is_fast and self._opinions.takes(engine_id, self._module.kind)
        if by_fast and found.outcome is Outcome.UNSUPPORTED:
            return errors.fast_compiler_lacks_feature(
                engine_id,
                found.message,
                found.offset,
                found.feature,
                # An engine that validates components by compiling them has not validated it.
                valid=self._module.kind is Kind.CORE_MODULE,
            )
        # A refusal is not stored, so stop if no caller waits any more.
        self._waiters.release()
        if not self._waiters.wanted:
            return errors.server_draining()
        return await self._opinions.refusal(engine_id, self._module, found, self._waiters)
