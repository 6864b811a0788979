"""Processes that use one host store at a time, and processes that are killed while they do."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, EvictScope

from tests.doubles.notes import Notes
from tests.e2e.processes import eventually
from tests.faults_host.stores import artifact, check_is_right, check_limit, entries_on_disk, store
from tests.sizes import size

TAGS = 12
LARGEST_BYTES = 700_000
LIMIT_BYTES = 2_500_000
"""Room for a few of the artifacts."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


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


KILLS = size(60, 24)


def left_over(directory: Path) -> list[Path]:
    return list((directory / "aside").iterdir())


async def check_whole_store(directory: Path) -> int:
    """Check every artifact that a store may have; return how many it has."""
    notes = Notes()
    async with store(directory, notes, limit_bytes=LIMIT_BYTES) as tier:
        found = [await check_is_right(tier, one_of(tag)) for tag in range(TAGS)]
    assert notes.rejected == []
    return sum(found)


async def check_is_tidied(directory: Path) -> None:
    """Check that a daemon removes what killed ones left, and leaves nothing at the end."""
    async with store(directory, limit_bytes=LIMIT_BYTES) as tier:
        await asyncio.to_thread(eventually, lambda: not left_over(directory), "it stays")
        await tier.evict(EvictScope())
        assert entries_on_disk(directory) == {}
    assert left_over(directory) == []


def test_a_process_that_is_killed_at_any_moment_leaves_nothing_wrong(tmp_path: Path) -> None:
    directory, dice, found, left = tmp_path / "store", random.Random(1), 0, 0
    for seed in range(10 * KILLS):
        if seed >= KILLS and found and left:
            break
        with running(directory, seed, evicts=seed % 4 == 0) as process:
            # Into the middle of what it does; on a busy machine it comes to that later.
            time.sleep(dice.random() * 0.1 * (1 + seed // KILLS))
            process.kill()
            process.join()
        left += len(left_over(directory)) > 0
        if seed % 4 == 3:
            found += asyncio.run(check_whole_store(directory))
            asyncio.run(check_limit(directory, LIMIT_BYTES))
    assert found  # It was no empty store that had nothing wrong,
    assert left  # and no process that had nothing on its way.
    asyncio.run(check_is_tidied(directory))


def test_two_processes_that_write_stay_within_the_limit(tmp_path: Path) -> None:
    directory, most = tmp_path / "store", 0
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(directory, seed, size(6.0, 3.0), evicts=False))
            for seed in (1, 2)
        ]
        while any(process.is_alive() for process in processes):
            # Only what was there all the time: an entry may come after another has gone.
            before, after = entries_on_disk(directory), entries_on_disk(directory)
            most = max(most, sum(before[path] for path in before.keys() & after.keys()))
            assert most <= LIMIT_BYTES
            time.sleep(0.01)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
    assert most > LIMIT_BYTES / 2
    asyncio.run(check_limit(directory, LIMIT_BYTES))
    assert asyncio.run(check_whole_store(directory)) > 1
