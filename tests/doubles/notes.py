"""A metrics for tests."""

from __future__ import annotations

from typing import Any

from wasmkilnd.model import Origin
from wasmkilnd.telemetry.metrics import Metrics


class Notes(Metrics):
    """Remembers what happened, each kind in a list of its own."""

    def __init__(self) -> None:
        super().__init__("0")
        self.lookups: list[tuple[str, str]] = []
        """Look-ups, and their outcomes."""
        self.stores: list[str] = []
        self.rejected: list[str] = []
        """Why values were rejected."""
        self.origins: list[Origin] = []
        self.behind: list[str] = []
        """How optimised compiles behind fast artifacts ended."""
        self.turns: list[str] = []
        """How waits for other daemons of the fleet ended."""

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        self.lookups.append((what, outcome))

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        self.stores.append(outcome)

    def value_rejected(self, tier: str, cause: str) -> None:
        self.rejected.append(cause)

    def count(self, name: str, *labels: str, by: int = 1, took: Any = ()) -> None:
        if name == "served":
            self.origins.append(Origin(labels[0]))
        else:
            told = {"compiled_behind": self.behind, "fleet_turns": self.turns}
            told.get(name, []).extend(labels[-1:])
