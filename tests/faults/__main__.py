"""``python -m tests.faults``: the faults under load, and a table of what callers noticed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.lab import describe_machine
from tests.faults.report import markdown, report
from tests.faults.suite import Plan, run


def main() -> int:
    """Run, and print the table as Markdown. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every sickness (3)")
    parser.add_argument("--tamperings", type=int, default=10, help="of every sort (10)")
    options = parser.parse_args()
    plan = Plan(options.rounds, options.tamperings, quiet_s=6.0, long=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-faults-") as folder:
        outcomes = asyncio.run(run(Path(folder), plan, _tell))
    made = report(outcomes)
    print(f"{markdown(made)}\n\n{describe_machine()}; {time.monotonic() - began:.0f} s.")
    broken = [*made.wrong, *made.failed, *made.errors]
    for what in broken:
        print(f"faults: {what}", file=sys.stderr)
    return int(bool(broken))


def _tell(what: str) -> None:
    print(f"faults: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
