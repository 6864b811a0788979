"""``python -m tests.e2e.stall_watch FILE …``: a wasmkilnd that notes what holds its event loop.

Each step of the loop that takes more than a few milliseconds of CPU becomes a line of FILE: the
moment on the monotonic clock, the seconds of CPU, and what ran. CPU, since a busy machine makes
every step take longer by the clock; and CPU as of the reference machine (``yardstick``), since
a slow processor needs more of it for the same step.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.programs import become_wasmkilnd
from tests.e2e.yardstick import slowness

_NOTED_S = 0.005
# Steps that a bound may be about. The yardstick itself takes time, so the others go without.
_LONG_S = 0.025


@dataclass(frozen=True, slots=True)
class Hold:
    """One step that held the loop."""

    at_s: float
    """When it ended, on the monotonic clock."""
    cpu_s: float


def holds(notes: Path) -> list[Hold]:
    """Return all recorded steps."""
    # The last line may be half written.
    lines = notes.read_text().splitlines(keepends=True)
    rows = [line.split(maxsplit=2) for line in lines if line.endswith("\n")]
    return [Hold(float(at_s), float(cpu_s)) for at_s, cpu_s, _ in rows]


def _watch(notes: Path) -> None:
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        took = time.thread_time() - began
        if took >= _NOTED_S:
            if took >= _LONG_S:
                took /= slowness()
            with notes.open("a") as file:
                file.write(
                    f"{time.monotonic():.3f} {took:.4f} {handle!r:.300}\n".replace("\n", " ") + "\n"
                )

    asyncio.Handle._run = watched  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run the daemon, watched."""
    notes = Path(sys.argv.pop(1))
    notes.touch()
    _watch(notes)
    become_wasmkilnd()


if __name__ == "__main__":
    main()
