"""A process that writes, reads and evicts in a host store until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, EvictScope

from tests.doubles.notes import Notes
from tests.faults_host.stores import artifact, check_is_right, store

TAGS = 12
LARGEST_BYTES = 700_000
LIMIT_BYTES = 2_500_000
"""Room for a few of the artifacts."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults_host.writing"])


def one_of(tag: int) -> Artifact:
    """Return the artifact with this tag, whose size follows from it."""
    return artifact(tag, random.Random(tag).randrange(LARGEST_BYTES))


def use(directory: Path, seed: int, seconds: float, evicts: bool, began: Event) -> None:
    """Use a store for some time, and check all that it returns. Ends with 0 if all was right."""
    asyncio.run(_use(directory, random.Random(seed), seconds, began, evicts=evicts))


async def _use(
    directory: Path, dice: random.Random, seconds: float, began: Event, *, evicts: bool
) -> None:
    notes = Notes()
    async with store(directory, notes, limit_bytes=LIMIT_BYTES) as tier:
        began.set()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            one = one_of(dice.randrange(TAGS))
            match dice.randrange(8 if evicts else 6):
                case 0 | 1:
                    await check_is_right(tier, one)
                case 6:
                    await tier.evict(EvictScope(module_sha256=one.module_sha256))
                case 7 if dice.random() < 0.1:
                    await tier.evict(EvictScope())
                case _:
                    with contextlib.suppress(TierUnavailable):
                        await tier.put(one)
    assert notes.rejected == []


@contextmanager
def running(
    directory: Path, seed: int, seconds: float = 60, *, evicts: bool = True
) -> Iterator[BaseProcess]:
    """Run ``use`` in a process of its own, which has begun by now, and end that at the end."""
    began = _context.Event()
    process = _context.Process(target=use, args=(directory, seed, seconds, evicts, began))
    process.start()
    assert began.wait(60)
    try:
        yield process
    finally:
        process.kill()
        process.join()
