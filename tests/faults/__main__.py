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


def main() -> int:
    """Run, and print the table as Markdown. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every fault (3)")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-faults-") as folder:
        made = asyncio.run(run(Path(folder), options.rounds, quiet_s=6.0, long=True, tell=_tell))
    print(f"{markdown(made)}\n\n{describe_machine()}; {time.monotonic() - began:.0f} s.")
    broken = [*made.wrong, *made.failed, *made.errors]
    for what in broken:
        _tell(what)
    return int(bool(broken))


def _tell(what: str) -> None:
    print(f"faults: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
