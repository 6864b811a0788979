"""Which engines are served now: a reload changes that while calls run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wasmkilnd import errors
from wasmkilnd.engines.served import ServedEngine


class EngineTable:
    """The engines that requests can choose, and those that only finish what they began.

    All namespaces share one. For one event loop.
    """

    def __init__(self, served: Sequence[ServedEngine], default: str) -> None:
        """Serve ``served``; see ``serve``."""
        self.served: Mapping[str, ServedEngine] = {}
        """By id, in the order in which names are resolved. Replaced as a whole."""
        self.default = ""
        self.known: dict[str, ServedEngine] = {}
        """By id, also those that are served no more: work that chose one of them goes on."""
        self._ended: set[str] = set()
        self.serve(served, default)

    def serve(self, served: Sequence[ServedEngine], default: str) -> None:
        """Let requests choose among ``served`` from now on.

        Of one name, the first is what the name stands for. ``default`` is the id of the engine
        for requests that name none; empty to refuse those.
        """
        self.served = {engine.id: engine for engine in served}
        self.default = default
        self.known |= self.served
        self._ended -= self.served.keys()

    def end(self, engine: ServedEngine) -> None:
        """Refuse all further work of an engine that was taken out."""
        if self.known.get(engine.id) is engine and engine.id not in self.served:
            self._ended.add(engine.id)

    def working(self, engine_id: str) -> ServedEngine:
        """Return an engine that takes jobs. Raises ENGINE_UNKNOWN for one that has ended."""
        if engine_id in self._ended:
            raise errors.engine_unknown(engine_id, self.served)
        return self.known[engine_id]


def default_of(wanted: str, served: Sequence[ServedEngine], unserved: Sequence[str]) -> str | None:
    """Return the id of the default engine, empty if it is not served; None if there is no such.

    ``wanted`` is an id, a name, or empty for the first of ``served``. ``unserved`` are the ids
    of installed engines that do not work. If ``wanted`` is one of them, requests that name no
    engine are refused, rather than served by an engine that the operator did not choose.
    """
    if not wanted:
        return served[0].id if served else ""
    for engine in served:
        if engine.id == wanted:
            return engine.id
    for engine in served:
        if engine.name == wanted:
            return engine.id
    known = any(wanted in (each, each.partition("-")[0]) for each in unserved)
    return "" if known else None
