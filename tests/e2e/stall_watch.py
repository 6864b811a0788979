"""``python -m tests.e2e.stall_watch FILE …``: a wasmkilnd that notes what holds its event loop.

Each step of the loop that takes more than a few milliseconds of CPU becomes a line of FILE: the
time in seconds, and what ran. CPU, since a busy machine makes every step take longer by the clock.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

_NOTED_S = 0.005


def longest_stall_s(notes: Path) -> float:
    """Answer how long the loop was held at most, in seconds of CPU; print by what."""
    lines = sorted(
        (line.split(maxsplit=1) for line in notes.read_text().splitlines()),
        key=lambda words: float(words[0]),
    )
    for seconds, what in lines[-3:]:
        print(f"held for {float(seconds) * 1e3:.1f} ms of CPU by {what}")
    return float(lines[-1][0]) if lines else 0.0


def _watch(notes: Path) -> None:
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        took = time.thread_time() - began
        if took >= _NOTED_S:
            with notes.open("a") as file:
                file.write(f"{took:.4f} {handle!r:.300}\n".replace("\n", " ") + "\n")

    asyncio.Handle._run = watched  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run the daemon, watched."""
    notes = Path(sys.argv.pop(1))
    notes.touch()
    _watch(notes)

    from wasmkilnd.cli import main as wasmkilnd

    wasmkilnd()


if __name__ == "__main__":
    main()
