"""A worker that one job has to itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from wasmkilnd.engines.scheduling.ticket import Ticket
from wasmkilnd.engines.workers.job_protocol import JobReport

W = TypeVar("W")


@dataclass(slots=True)
class LentWorker(Generic[W]):
    """A worker that is there for one job."""

    _ticket: Ticket[W]
    _run: Callable[[], Coroutine[Any, Any, JobReport]]
    used: bool = False

    @property
    def queued_s(self) -> float:
        """How long the job waited for the worker that it has now."""
        return self._ticket.queued_s

    async def run(self) -> JobReport:
        """Run the job, once; see WorkerPool. The worker is free for others when it ends."""
        self.used = True
        return await self._run()
