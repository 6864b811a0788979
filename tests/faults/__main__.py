"""``python -m tests.faults``: the faults under load, and a table of what callers noticed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.lab import describe_machine
from tests.faults.run import markdown, run
from tests.promises import ended, teller


def main() -> int:
    """Run, and print the table as Markdown. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every fault (3)")
    options, began, tell = parser.parse_args(), time.monotonic(), teller("faults")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-faults-") as folder:
        made = asyncio.run(run(Path(folder), options.rounds, quiet_s=6.0, long=True, tell=tell))
    machine = f"{describe_machine()}; {time.monotonic() - began:.0f} s."
    complaints = [*made.wrong, *made.failed, *made.errors]
    return ended(tell, f"{markdown(made)}\n\n{machine}", complaints)


if __name__ == "__main__":
    sys.exit(main())
