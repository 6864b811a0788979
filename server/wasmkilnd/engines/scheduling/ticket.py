"""A job's place in the line for a worker, and the worker that it gets in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from wasmkilnd.engines.scheduling.fair_queue import Entry
from wasmkilnd.waiters import Waiters

W = TypeVar("W")

Unless: TypeAlias = "Callable[[], Coroutine[Any, Any, None]]"
"""Returns when what waits for a worker needs none any more."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[W]):
    """A job's claim to a worker, from when it asks until its worker is done with it."""

    waiters: Waiters
    kind: str
    entry: Entry
    asked_s: float
    started_s: float = 0.0
    granted: asyncio.Future[W | None] = field(default_factory=lambda: asyncio.Future())
    """Done when it has a worker; None when it needs none any more."""
    given_up: bool = False
    """Whether its job was ended from outside or never begun, so that its time says nothing."""
    reclaimed: bool = False
    """Whether its worker was asked back for another."""

    @property
    def worker(self) -> W:
        """The worker that it got. Raises LookupError if it got none."""
        worker = self.granted.result()
        if worker is None:
            raise LookupError("the ticket was withdrawn")
        return worker

    @property
    def queued_s(self) -> float:
        """How long it waited for that worker."""
        return self.started_s - self.asked_s

    def withdraw(self, watching: asyncio.Task[None]) -> None:
        """Wait no more: ``watching`` has ended, and tells so, or how it failed."""
        if watching.cancelled() or self.granted.done():
            return
        if failure := watching.exception():
            self.granted.set_exception(failure)
        else:
            self.granted.set_result(None)
