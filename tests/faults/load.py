"""Many callers at once: hits in memory, hits in Redis, and new modules."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import TracebackType

from tests.faults.callers import Call, Caller
from tests.faults.material import Material, cold

CALLERS_PER_DAEMON = 6
# Of a hundred calls; the rest are for what Redis has and memory does not.
_HOT, _COLD = 30, 7
# Two CPUs should not be busy all the time, or every wait would be one for a CPU.
_PAUSE_S = 0.06


class Load:
    """Calls each daemon from several tasks until the context ends."""

    def __init__(self, callers: Sequence[Caller], material: Material) -> None:
        self._callers = callers
        self._material = material
        self._asked = 0
        self._random = random.Random(1)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def calls(self) -> list[Call]:
        """All calls so far."""
        return [call for caller in self._callers for call in caller.calls]

    async def __aenter__(self) -> Load:
        self._tasks = [
            asyncio.create_task(self._go_on(caller))
            for caller in self._callers
            for _ in range(CALLERS_PER_DAEMON)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not kind:
                raise error

    async def _go_on(self, caller: Caller) -> None:
        while True:
            draw = self._random.randrange(100)
            if draw < _COLD:
                self._asked += 1
                await caller.upload(await asyncio.to_thread(cold, self._asked))
            else:
                known = self._material.hot if draw < _COLD + _HOT else self._material.warm
                await caller.compile(self._random.choice(known))
            await asyncio.sleep(_PAUSE_S * self._random.uniform(0.5, 1.5))
