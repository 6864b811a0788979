"""A daemon whose memory tier is full of made-up artifacts when it starts: a program of the bench.

    python -m bench.scale.filled ENTRIES SPEC_FILE serve …

Otherwise it is ``wasmkilnd serve`` as it is. SPEC_FILE holds what the daemon's own fingerprint
stands for, so that calls find the artifacts.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from wasmkilnd import app
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cli import main as serve
from wasmkilnd.lifecycle.malloc_trim import configure_malloc

from bench.scale.entries import Entries, read_spec

_NO_LIMIT = 1 << 50


async def fill(tier: MemoryTier, entries: Entries, count: int) -> None:
    """Store so many entries."""
    for number in range(count):
        await tier.put(entries.unsigned(number))


def main(count: int, spec_file: Path) -> None:
    """Fill a tier, and serve with it."""
    configure_malloc()
    tier = MemoryTier(_NO_LIMIT)
    asyncio.run(fill(tier, Entries(read_spec(spec_file)), count))

    def filled(limit_bytes: int) -> MemoryTier:
        tier.resize(limit_bytes)
        if tier.usage().entries != count:
            raise SystemExit("memory_bytes is less than the entries take")
        return tier

    setattr(app, MemoryTier.__name__, filled)
    serve()


if __name__ == "__main__":
    given = sys.argv[1:3]
    del sys.argv[1:3]
    main(int(given[0]), Path(given[1]))
