"""``python -m tests.soak``: print its figures as Markdown; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from bench.lab import describe_machine
from tests.promises import broken, ended, teller
from tests.soak.run import Plan, run


def main() -> int:
    """Run as long as the command line says."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of load (600)")
    parser.add_argument("--seed", type=int, help="of all that is drawn by lot (another each time)")
    parser.add_argument("--small", action="store_true", help="no large modules")
    options, tell = parser.parse_args(), teller("soak")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    tell(f"{options.seconds:g} s with seed {seed}")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-soak-") as folder:
        plan = Plan(options.seconds, seed, small=options.small)
        checks, figures = asyncio.run(run(Path(folder), plan, tell))
    return ended(tell, f"{figures}\n\n{describe_machine()}.", broken(checks))


if __name__ == "__main__":
    sys.exit(main())
