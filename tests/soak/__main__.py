"""``python -m tests.soak``: print its figures as Markdown; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from bench.lab import describe_machine
from tests.soak.run import Plan, run


def main() -> int:
    """Run as long as the command line says."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of load (300)")
    parser.add_argument("--seed", type=int, help="of all that is drawn by lot (another each time)")
    parser.add_argument("--small", action="store_true", help="no large modules")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    _tell(f"{options.seconds:g} s with seed {seed}")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-soak-") as folder:
        plan = Plan(options.seconds, seed, small=options.small)
        verdict = asyncio.run(run(Path(folder), plan, _tell))
    print(f"{verdict.figures}\n\n{describe_machine()}.")
    for check in verdict.broken:
        _tell(f"broken: {check.promise}: {check.seen}")
    return int(bool(verdict.broken))


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} soak: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
