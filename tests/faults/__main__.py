"""``python -m tests.faults``: the faults under load, and a table of what callers noticed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.lab import describe_machine
from tests.faults.objects import OBJECTS
from tests.faults.run import markdown, run
from tests.faults.site import REDIS

_TIERS = {tier.name: tier for tier in (REDIS, OBJECTS)}


def main() -> int:
    """Run, and print the table as Markdown. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every fault (3)")
    parser.add_argument("--of", choices=_TIERS, default=REDIS.name, help="what fails (redis)")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-faults-") as folder:
        going = run(
            Path(folder), options.rounds, 6.0, tier=_TIERS[options.of], long=True, tell=_tell
        )
        made = asyncio.run(going)
    print(f"{markdown(made)}\n\n{describe_machine()}; {time.monotonic() - began:.0f} s.")
    broken = [*made.wrong, *made.failed, *made.errors]
    for what in broken:
        _tell(what)
    return int(bool(broken))


def _tell(what: str) -> None:
    print(f"faults: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
