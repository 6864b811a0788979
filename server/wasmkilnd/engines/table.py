"""Which engines are served now: a reload changes that while calls run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from wasmkilnd import errors
from wasmkilnd.engines.names import Names
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.errors import Reason, WasmkilnError

# How a job or a worker ends whose engine's files are not there any more.
_BY_REMOVAL = frozenset({Reason.COMPILER_CRASHED, Reason.WORKER_UNAVAILABLE})


class EngineTable:
    """The engines that requests can choose, and those that only finish what they began.

    All namespaces share one. For one event loop.
    """

    def __init__(self, served: Sequence[ServedEngine], names: Names) -> None:
        """Serve ``served``; see ``serve``."""
        self.served: Mapping[str, ServedEngine] = {}
        """By id; those that names stand for come first. Replaced as a whole."""
        self.ids: Mapping[str, str] = {}
        """The id of what is served by each word that a request may name it by: id or name."""
        self.names = names
        self.known: dict[str, ServedEngine] = {}
        """By id, also those that are served no more: work that chose one of them goes on."""
        self.removed: Collection[str] = ()
        """Ids of engines that were removed, also before this daemon started."""
        self._ended: set[str] = set()
        self.serve(served, names)

    def serve(self, served: Sequence[ServedEngine], names: Names) -> None:
        """Let requests choose among ``served`` from now on, by their ids and by ``names``."""
        # Clients choose the first.
        order = sorted(served, key=lambda engine: names.by_name.get(engine.name) != engine.id)
        self.served = {engine.id: engine for engine in order}
        self.names = names
        named = {name: each for name, each in names.by_name.items() if each in self.served}
        self.ids = named | {each: each for each in self.served}
        self.known |= self.served
        self._ended -= self.served.keys()

    def end(self, engine: ServedEngine) -> None:
        """Refuse all further work of an engine that was taken out."""
        if self.known.get(engine.id) is engine and engine.id not in self.served:
            self._ended.add(engine.id)

    def working(self, engine_id: str) -> ServedEngine:
        """Return an engine that takes jobs. Raises ENGINE_REMOVED for one that has ended."""
        if engine_id in self._ended:
            raise self.not_served(engine_id)
        return self.known[engine_id]

    def explained(self, engine_id: str, failure: WasmkilnError) -> WasmkilnError:
        """Return ENGINE_REMOVED for what broke because the engine's files are gone."""
        if failure.reason in _BY_REMOVAL and not self.known[engine_id].is_installed():
            return errors.engine_removed(
                engine_id, [each for each in self.served if each != engine_id]
            )
        return failure

    def not_served(self, engine: str) -> WasmkilnError:
        """Return ENGINE_UNKNOWN for an id or a name; ENGINE_REMOVED for what was served before."""
        engine = self.names.by_name.get(engine, engine)
        if (
            engine in self.known
            or engine in self.removed
            or any(engine == each.name for each in self.known.values())
        ):
            return errors.engine_removed(engine, self.served)
        return errors.engine_unknown(engine, self.served)
