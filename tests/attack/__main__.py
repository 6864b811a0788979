"""``python -m tests.attack``: print figures as Markdown; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.lab import describe_machine
from tests.attack.run import run
from tests.attack.verdict import judge, markdown
from tests.attack.ways import WAYS


def main() -> int:
    """Attack as the command line says."""
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="of each way to attack (15)")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="this way; repeatable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-attack-") as folder:
        figures = asyncio.run(run(Path(folder), options.only or list(WAYS), options.seconds, _tell))
    checks = judge(figures)
    print(f"{markdown(figures, checks)}\n\n{describe_machine()}.")
    broken = [check for check in checks if not check.kept]
    for check in broken:
        _tell(f"broken: {check.promise}: {check.seen}")
    return int(bool(broken))


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} attack: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
