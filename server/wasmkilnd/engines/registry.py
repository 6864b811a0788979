"""Every engine: choose one for a request; ``compilation`` has its workers do the rest."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence

from wasmkilnd import errors
from wasmkilnd.engines.compilation import Compilation
from wasmkilnd.engines.names import NameChoices, Names, resolve
from wasmkilnd.engines.served import EngineTable, ServedEngine
from wasmkilnd.model import CompileSpec, Kind, Limits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.telemetry.metrics import Metrics


class EngineRegistry(Compilation):
    """Every engine that the daemon serves."""

    def __init__(
        self,
        served: Sequence[ServedEngine],
        choices: NameChoices,
        limits: Reloadable[Limits],
        recorder: Metrics,
    ) -> None:
        """Serve ``served``, the preferred ones first; see ``names.resolve``."""
        names = resolve(choices, [engine.id for engine in served])
        super().__init__(EngineTable(served, names), limits, recorder)
        self._table.removed = choices.removed
        self.choices = choices
        """What decides which engine a name stands for."""

    def view(self, recorder: Metrics) -> EngineRegistry:
        """Return the same engines and workers, counting in ``recorder``."""
        other = copy.copy(self)
        other._recorder = recorder
        return other

    def serve(self, served: Sequence[ServedEngine], choices: NameChoices) -> None:
        """Serve these from now on, in all views; work that chose another one goes on."""
        self.choices = choices
        self._table.serve(served, resolve(choices, [engine.id for engine in served]))
        self._table.removed = choices.removed

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

        ``kind`` is None while only the module's digest is known. Raises ENGINE_UNKNOWN, or
        ENGINE_REMOVED for one that was served before.
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
        """Return ``spec`` with the engine's fast compiler.

        Return None if the engine has none, or if ``settings``, those of the request, choose a
        compiler.
        """
        return self._table.known[spec.engine.id].fast(spec, settings)

    async def close(self) -> None:
        """End every worker."""
        await asyncio.gather(*(engine.pool.close() for engine in self._table.known.values()))
