"""One tier with so many entries, in a process of its own: a program of the bench.

    python -m bench.scale.probe TIER ENTRIES PLACE

PLACE is the URL of an empty server, or an empty folder. Once the tier is full, the program
prints a line, and from then on answers each order, a line of JSON, with one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from wasmkilnd.model import EvictScope

from bench.machine import resident_bytes
from bench.scale.entries import Entries
from bench.scale.stores import STORES, Store


class _Pauses:
    """Remembers how long the garbage collector held the program up."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began = 0.0
        gc.callbacks.append(self._take_note)

    def _take_note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.longest_s = max(self.longest_s, time.perf_counter() - self._began)


class Probe:
    """Does what it is ordered to, and returns seconds for one operation."""

    def __init__(self, store: Store, entries: Entries, first_new: int) -> None:
        self._store = store
        self._entries = entries
        self._next = first_new

    async def get(self, count: int) -> float:
        """Read entries."""
        keys = [self._entries.key(each) for each in random.choices(self._store.live, k=count)]
        store = self._store
        began = time.perf_counter()
        found = [await store.get(key) for key in keys]
        seconds = time.perf_counter() - began
        if None in found:
            raise ValueError("the tier does not hold what it was given")
        return seconds / count

    async def path(self, count: int) -> float:
        """Ask for files that this process has checked."""
        assert self._store.files
        keys = [self._entries.key(each) for each in random.choices(self._store.live, k=count)]
        began = time.perf_counter()
        found = [await self._store.files.file_of(key) for key in keys]
        seconds = time.perf_counter() - began
        if None in found:
            raise ValueError("the tier does not have a file that it was given")
        return seconds / count

    async def put(self, count: int) -> float:
        """Store new entries."""
        numbers = range(self._next, self._next + count)
        artifacts = [self._store.make(number) for number in numbers]
        store = self._store
        began = time.perf_counter()
        for artifact in artifacts:
            await store.put(artifact)
        seconds = time.perf_counter() - began
        self._next += count
        self._store.stored(numbers)
        return seconds / count

    async def evict(self, count: int) -> float:
        """Evict modules, one at a time, and store them again."""
        numbers = random.sample(self._store.live, count)
        scopes = [EvictScope(self._entries.key(number).module_sha256) for number in numbers]
        store = self._store
        began = time.perf_counter()
        gone = [await store.evict(scope) for scope in scopes]
        seconds = time.perf_counter() - began
        if any(each.artifacts != 1 for each in gone):
            raise ValueError("the tier did not hold what was to be evicted")
        for number in numbers:
            await store.put(self._store.make(number))
        return seconds / count


async def main(tier: str, count: str, place: str) -> None:
    """Fill the tier, and serve orders until standard input ends."""
    # The tiers' log would come between the answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    entries, pauses = Entries(), _Pauses()
    # As the daemon does once it has started.
    gc.collect()
    gc.freeze()
    began = time.perf_counter()
    async with STORES[tier](entries, int(count), place) as store:
        filled_s = time.perf_counter() - began
        print(json.dumps({"filled_s": filled_s}), flush=True)
        probe = Probe(store, entries, int(count))
        operations: dict[str, Callable[[int], Awaitable[float]]] = {
            "get": probe.get,
            "path": probe.path,
            "put": probe.put,
            "evict": probe.evict,
        }
        while line := await asyncio.to_thread(sys.stdin.readline):
            order: dict[str, Any] = json.loads(line)
            answer: dict[str, float]
            if order["op"] == "memory":
                answer = {
                    "resident": resident_bytes(),
                    "budget": store.budget_bytes,
                    "longest_pause_s": pauses.longest_s,
                }
            else:
                answer = {"seconds": await operations[order["op"]](order["count"])}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
