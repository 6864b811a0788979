"""``python -m tests.attack``: print figures as Markdown; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.lab import describe_machine
from tests.attack.run import judge, markdown, run
from tests.attack.ways import WAYS
from tests.promises import broken, ended, teller


def main() -> int:
    """Attack as the command line says."""
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="of each way to attack (15)")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="this way; repeatable")
    options, tell = parser.parse_args(), teller("attack")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-attack-") as folder:
        names = options.only or list(WAYS)
        figures = asyncio.run(run(Path(folder), names, options.seconds, tell))
    checks = judge(figures)
    return ended(tell, f"{markdown(figures, checks)}\n\n{describe_machine()}.", broken(checks))


if __name__ == "__main__":
    sys.exit(main())
