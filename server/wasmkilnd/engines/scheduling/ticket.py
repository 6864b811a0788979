"""A job's place in the queue for a worker, and the worker that it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from wasmkilnd.engines.scheduling.fair_queue import Entry
from wasmkilnd.waiters import Waiters

W = TypeVar("W")

Unless: TypeAlias = "Callable[[], Coroutine[Any, Any, None]]"
"""Returns when a job that waits for a worker needs none any more."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[W]):
    """A job's claim to a worker, from when the job asks until the worker is free again."""

    waiters: Waiters
    kind: str
    entry: Entry
    asked_s: float
    started_s: float = 0.0
    granted: asyncio.Future[W | None] = field(default_factory=lambda: asyncio.Future())
    """The worker, once there is one; None if the job needs none any more."""
    given_up: bool = False
    """Whether its job was killed or never began, so that its time is no measure."""
    reclaimed: bool = False
    """Whether its job was ended to free the worker for another job."""

    @property
    def worker(self) -> W:
        """The worker. Raises LookupError if the ticket was withdrawn."""
        worker = self.granted.result()
        if worker is None:
            raise LookupError("the ticket was withdrawn")
        return worker

    @property
    def queued_s(self) -> float:
        """How long the job waited for the worker."""
        return self.started_s - self.asked_s

    def withdraw(self, watching: asyncio.Task[None]) -> None:
        """Stop waiting because ``watching`` has ended; raise in the waiting job if that failed."""
        if watching.cancelled() or self.granted.done():
            return
        if failure := watching.exception():
            self.granted.set_exception(failure)
        else:
            self.granted.set_result(None)
