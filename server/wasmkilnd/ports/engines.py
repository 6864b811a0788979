"""What compiles and validates modules."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import CompileSpec, EvictScope, Kind, Module
from wasmkilnd.waiters import Waiter, Waiters
from wasmkilnd.wire import Packed


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """The result of a compilation that succeeded."""

    code: Packed
    compile_time_s: float
    queue_time_s: float
    imports: Sequence[Sequence[str]]
    """Each as module, name, kind, type."""
    exports: Sequence[Sequence[str]]
    types_truncated: bool


class Refused(Protocol):
    """The result of a compilation that an engine refused."""

    async def explained(self) -> WasmkilnError:
        """Ask other engines why, which takes a while; return the error for the caller.

        If no caller waits any more, ask none and return SERVER_DRAINING, which no caller reads.
        Raises COMPILE_QUEUE_FULL or SERVER_DRAINING if an engine could not be asked.
        """
        ...


class EngineWorker(Protocol):
    """A worker that is reserved for one module."""

    @property
    def queued_s(self) -> float:
        """How long the module waited for the worker."""
        ...

    async def compile(self) -> CompiledCode | Refused:
        """Compile the module, once. Raises the errors of Compile."""
        ...


class Engines(Protocol):
    """Every engine that the daemon serves.

    Safe for concurrent use from one event loop. Whatever a module does to an engine, only the
    calls about that module fail, and each with a WasmkilnError.
    """

    def choose(self, engine: str, kind: Kind | None) -> str:
        """Return the id of the engine that a request names.

        ``kind`` is None while only the module's digest is known. Raises ENGINE_UNKNOWN or
        ENGINE_REMOVED.
        """
        ...

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> CompileSpec:
        """Complete a request with defaults. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""
        ...

    def fast(self, spec: CompileSpec, settings: Mapping[str, str]) -> CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler.

        Return None if the engine has none, or if ``settings``, those of the request, choose a
        compiler.
        """
        ...

    def worker(
        self,
        spec: CompileSpec,
        module: Module,
        waiters: Waiters,
        *,
        unless: Callable[[], Coroutine[Any, Any, None]],
    ) -> AbstractAsyncContextManager[EngineWorker | None]:
        """Wait for a worker in the turn of ``waiters``; reserve it for the context.

        The worker is None if ``unless`` returns before one is free. Raises the errors of
        Compile that can be told before compiling: a known verdict, no room in the queue.
        """
        ...

    async def validate(
        self,
        engine_id: str,
        module: Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate ``module`` in a worker, in the turn of ``waiters``. Raises the errors of Load.

        If the engine has to compile in order to validate, that one job runs inside ``watch``,
        however many calls ask for it.
        """
        ...

    def expected_wait_s(
        self, engine_id: str, module: Module, waiter: Waiter, others: Waiters | None
    ) -> float:
        """Return how long ``waiter`` would wait for a worker; 0 if one is free.

        ``others`` wait for the job that ``waiter`` would join; None for a job of its own.
        """
        ...

    def forget(self, scope: EvictScope) -> None:
        """Forget the verdicts of engines about what ``scope`` names."""
        ...
