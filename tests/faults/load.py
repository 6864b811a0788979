"""Many callers at once: hits in memory and below, and new modules; each answer is checked."""

from __future__ import annotations

import asyncio
import importlib.metadata
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import wasmtime
from wasmkiln import AsyncClient, WasmkilnError
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm

ENGINE = f"wasmtime-{importlib.metadata.version('wasmtime')}"
CALLERS_PER_DAEMON = 6
# Of a hundred calls; the rest are for what the tier below has and memory does not.
_HOT, _COLD = 30, 7
# Two CPUs should not be busy all the time, or every wait would be one for a CPU.
_PAUSE_S = 0.06


@dataclass(frozen=True, slots=True)
class Call:
    """How one call went."""

    began_s: float
    seconds: float
    origin: int = 0
    work_s: float = 0.0
    """The time for compiling and for waiting for a worker, also of a compile that it joined."""
    failure: str = ""
    wrong: str = ""
    """What is wrong with the answer."""

    @property
    def ended_s(self) -> float:
        """When it ended, on the monotonic clock."""
        return self.began_s + self.seconds

    @property
    def waited_s(self) -> float:
        """How long it took apart from compiling."""
        return self.seconds - self.work_s


@dataclass(frozen=True, slots=True)
class Known:
    """A module, and the artifact that the engine makes of it without a daemon."""

    wasm: bytes
    artifact: bytes


def known(module: bytes) -> Known:
    """Compile ``module`` here, with the engine itself."""
    artifact = wasmtime.Module(wasmtime.Engine(), module).serialize()
    return Known(module, bytes(artifact))


class Load:
    """Calls each daemon from several tasks. Its clients verify what they get."""

    def __init__(self, clients: Sequence[AsyncClient]) -> None:
        self._clients = clients
        self._random = random.Random(1)
        self._asked = 0
        # Asked for so often that they stay in memory.
        self._hot = [known(wasm.constant(-1 - tag)) for tag in range(2)]
        # More than memory holds. 140 KB, of which compiling takes 60 ms; 0.6 MB in two frames, and
        # 1.2 in three, which takes two reads; both are data.
        self._warm = [
            *(known(wasm.many_functions(1000 + tag)) for tag in range(3)),
            *(known(wasm.with_data(at, at)) for at in (600_000, 600_001, 1_200_000, 1_200_001)),
        ]
        self.calls: list[list[Call]] = [[] for _ in clients]
        """The calls to each daemon so far."""

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Call until the context ends."""
        async with asyncio.TaskGroup() as tasks:
            going = [
                tasks.create_task(self._go_on(daemon))
                for daemon in range(len(self._clients))
                for _ in range(CALLERS_PER_DAEMON)
            ]
            yield
            for task in going:
                task.cancel()

    async def _go_on(self, daemon: int) -> None:
        while True:
            draw = self._random.randrange(100)
            if draw < _COLD:
                self._asked += 1
                module = await asyncio.to_thread(known, wasm.constant(self._asked))
            else:
                module = self._random.choice(self._hot if draw < _COLD + _HOT else self._warm)
            self.calls[daemon].append(await _call(self._clients[daemon], module))
            await asyncio.sleep(_PAUSE_S * self._random.uniform(0.5, 1.5))

    def since(self, began_s: float) -> list[Call]:
        """Return the calls that began since."""
        return [call for some in self.calls for call in some if call.began_s >= began_s]


async def _call(client: AsyncClient, module: Known) -> Call:
    began_s = time.monotonic()
    try:
        found = await client.compile(module.wasm, engine=ENGINE, cpu="native")
    except WasmkilnError as failure:
        return Call(began_s, time.monotonic() - began_s, failure=str(failure))
    header, seconds = found.header, time.monotonic() - began_s
    work_s = 0.0
    if header.origin == types_pb2.ORIGIN_COMPILED:
        times = (header.compile_time, header.queue_time)
        work_s = sum(each.ToTimedelta().total_seconds() for each in times)
    wrong = (
        "" if found.bytes == module.artifact else f"{len(found.bytes)} bytes of another artifact"
    )
    return Call(began_s, seconds, header.origin, work_s, wrong=wrong)
