"""Samples of what a daemon holds, taken from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.processes import memory_of
from tests.e2e.stall_watch import Hold, holds

_EVERY_S = 0.2


@dataclass(frozen=True)
class Sample:
    """One sample of the daemon's own process."""

    at_s: float
    memory_bytes: int
    descriptors: int
    log_bytes: int
    """What the daemon has written to standard error since its start."""


@dataclass
class Sampler:
    """Takes samples of a daemon that runs under ``tests.e2e.stall_watch``."""

    daemon: Daemon
    stalls: Path
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """Take a sample, and keep it."""
        pid = self.daemon.pid
        sample = Sample(
            time.monotonic(),
            memory_of(pid),
            sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
            sum(map(len, list(self.daemon.log_lines))),
        )
        self.samples.append(sample)
        return sample

    def holds(self, since_s: float, until_s: float) -> list[Hold]:
        """Return the holds of the event loop within a span of time."""
        return [hold for hold in holds(self.stalls) if since_s <= hold.at_s <= until_s]

    def within(self, since_s: float, until_s: float) -> list[Sample]:
        """Return the samples of a span of time."""
        return [sample for sample in self.samples if since_s <= sample.at_s <= until_s]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take five samples a second while the context lasts."""

        async def sample() -> None:
            while True:
                await asyncio.to_thread(self.look)
                await asyncio.sleep(_EVERY_S)

        task = asyncio.create_task(sample())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
