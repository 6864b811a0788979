"""What the request path tells the metrics."""

from __future__ import annotations

from typing import Protocol

from wasmkilnd.model import Origin


class Recorder(Protocol):
    """Takes note of what happens.

    Safe for use from any thread. Every method returns at once and never raises: what cannot be
    recorded is lost.
    """

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """Record a look-up in a tier.

        ``what`` is ``artifact`` or ``module``; ``outcome`` is ``hit``, ``miss`` or ``error``.
        """
        ...

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """Record a write to a tier; ``outcome`` is ``ok`` or ``error``."""
        ...

    def value_rejected(self, tier: str, cause: str) -> None:
        """Record that a stored value did not verify and was deleted.

        ``cause`` is one of a small set.
        """
        ...

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """Record a compilation; ``outcome`` is ``ok`` or an error's reason in lower case."""
        ...

    def served(self, origin: Origin) -> None:
        """Record that a Compile call was answered."""
        ...

    def flight_joined(self) -> None:
        """Record that a caller shared another caller's compilation."""
        ...

    def compiled_behind(self, outcome: str) -> None:
        """Record how an optimised compile behind a fast artifact ended.

        ``outcome`` is ``compiled``; ``found`` if the artifact came from elsewhere; ``failed``; or
        ``dropped`` if it did not run.
        """
        ...

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """Record how a compile ended, for the list of recent ones; no hit of memory is one.

        ``origin`` is empty for one that failed, ``reason`` for one that did not. ``took_s`` is what
        a caller would have waited.
        """
        ...

    def fleet_turn(self, outcome: str) -> None:
        """Record how a claim to compile ended; ``outcome`` is one of a small set."""
        ...

    def abandoned(self, engine_id: str, stage: str) -> None:
        """Record that a job was ended because no caller waited for it.

        ``stage`` is ``queued`` or ``running``.
        """
        ...

    def quarantine_refused(self) -> None:
        """Record that a compile was refused because the module is in quarantine."""
        ...

    def job_starved(self, engine_id: str) -> None:
        """Record that a job got no CPU in the idle class, and went on at low priority."""
        ...

    def worker_replaced(self, engine_id: str) -> None:
        """Record that a worker died and a new one took its place."""
        ...
