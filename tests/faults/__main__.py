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
from tests.promises import ended, teller

_TIERS = {tier.name: tier for tier in (REDIS, OBJECTS)}


def main() -> int:
    """Run, and print the table as Markdown. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every fault (3)")
    parser.add_argument("--of", choices=_TIERS, default=REDIS.name, help="what fails (redis)")
    options, began, tell = parser.parse_args(), time.monotonic(), teller("faults")
    tier = _TIERS[options.of]
    with tempfile.TemporaryDirectory(prefix="wasmkiln-faults-") as folder:
        going = run(Path(folder), options.rounds, 6.0, tier=tier, long=True, tell=tell)
        made = asyncio.run(going)
    machine = f"{describe_machine()}; {time.monotonic() - began:.0f} s."
    complaints = [*made.wrong, *made.failed, *made.errors]
    return ended(tell, f"{markdown(made)}\n\n{machine}", complaints)


if __name__ == "__main__":
    sys.exit(main())
