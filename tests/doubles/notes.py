"""A metrics for tests."""

from __future__ import annotations

from typing import Any

from wasmkilnd.model import Origin
from wasmkilnd.telemetry.metrics import Metrics


class Notes(Metrics):
    """Remembers what happened, each kind in a list of its own."""

    def __init__(self) -> None:
        super().__init__("0")
        # Look-ups, and their outcomes; stores; why values were rejected; how compiles ended.
        self.lookups = list[tuple[str, str]]()
        self.stores, self.rejected, self.compiles = list[str](), list[str](), list[str]()
        # How long compiles took, and how long each had waited for a worker before.
        self.compile_times = list[tuple[float, float]]()
        # Module, engine, origin and reason of compiles that ended.
        self.ended = list[tuple[str, str, str, str]]()
        self.origins, self.joined = list[Origin](), 0
        # How optimised compiles behind fast artifacts ended, and waits for other daemons; at
        # which stage jobs without callers were ended; why workers were replaced.
        self.behind, self.turns = list[str](), list[str]()
        self.abandonments, self.replaced = list[str](), list[str]()

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        self.lookups.append((what, outcome))

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        self.stores.append(outcome)

    def value_rejected(self, tier: str, cause: str) -> None:
        self.rejected.append(cause)

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        self.compiles.append(outcome)
        self.compile_times.append((seconds, queued_s))

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        self.ended.append((module, engine, origin, reason))

    def count(self, name: str, *labels: str, by: int = 1, took: Any = ()) -> None:
        if name == "served":
            self.origins.append(Origin(labels[0]))
        elif name == "flights_joined":
            self.joined += 1
        else:
            told = {
                "compiled_behind": self.behind,
                "fleet_turns": self.turns,
                "abandoned": self.abandonments,
                "workers_replaced": self.replaced,
            }
            told.get(name, []).extend(labels[-1:])
