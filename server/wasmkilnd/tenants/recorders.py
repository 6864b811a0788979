"""Counts what happens in a namespace twice: for the whole daemon, and for the namespace alone."""

from __future__ import annotations

from wasmkilnd.model import Origin
from wasmkilnd.ports import Recorder


class BothRecorders(Recorder):
    """Records with two others."""

    def __init__(self, whole: Recorder, own: Recorder) -> None:
        self._both = (whole, own)

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """As Recorder."""
        for each in self._both:
            each.tier_lookup(tier, what, outcome, seconds)

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """As Recorder."""
        for each in self._both:
            each.tier_store(tier, outcome, seconds)

    def value_rejected(self, tier: str, cause: str) -> None:
        """As Recorder."""
        for each in self._both:
            each.value_rejected(tier, cause)

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """As Recorder."""
        for each in self._both:
            each.compiled(engine_id, outcome, seconds, queued_s)

    def served(self, origin: Origin) -> None:
        """As Recorder."""
        for each in self._both:
            each.served(origin)

    def flight_joined(self) -> None:
        """As Recorder."""
        for each in self._both:
            each.flight_joined()

    def compiled_behind(self, outcome: str) -> None:
        """As Recorder."""
        for each in self._both:
            each.compiled_behind(outcome)

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """As Recorder."""
        for each in self._both:
            each.compile_ended(module, engine, origin, reason, took_s)

    def fleet_turn(self, outcome: str) -> None:
        """As Recorder."""
        for each in self._both:
            each.fleet_turn(outcome)

    def abandoned(self, engine_id: str, stage: str) -> None:
        """As Recorder."""
        for each in self._both:
            each.abandoned(engine_id, stage)

    def quarantine_refused(self) -> None:
        """As Recorder."""
        for each in self._both:
            each.quarantine_refused()

    def worker_replaced(self, engine_id: str) -> None:
        """As Recorder."""
        for each in self._both:
            each.worker_replaced(engine_id)
