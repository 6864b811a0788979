"""Shows what each module of the catalogue does to each engine, under a daemon's limits.

    python -m tests.hostile [--only NAME]... [-- FLAGS OF THE DAEMON]

Prints a Markdown table. The exit code is 1 if a module got anything but a clear answer, or if
the daemon did not serve as before afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.hostile.answers import CLEAR_ANSWERS, ENGINES, highest_memory_bytes, try_each
from tests.hostile.catalogue import CATALOGUE


def main() -> int:
    """Run what the command line names, one module at a time."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    installed_engines()
    unclear = 0
    chosen = [one for one in CATALOGUE if not args.only or one.name in args.only]
    columns = ["module", "bytes", "expensive because of", *(f"{e} | s" for e in ENGINES)]
    print(f"| {' | '.join(columns)} |\n|{'---|' * (3 + 2 * len(ENGINES))}")
    # The daemon's own limit of time: daemons of other tests have more, for busy machines.
    limits = ["--compile-timeout-s", "30"]
    flags = ["--redis-url", "none", "--quarantine-s", "0", *limits, *args.flags]
    with (
        tempfile.TemporaryDirectory() as folder,
        Daemon(fresh_state(Path(folder) / "state"), flags) as daemon,
        daemon.client(max_attempts=1, timeout_s=300) as client,
    ):
        tried = (try_each(client, engine, chosen) for engine in ENGINES)
        for hostile, *answers in zip(chosen, *tried, strict=True):
            cells = [hostile.name, f"{len(hostile.build()):,}", hostile.hurts_by]
            for answer in answers:
                cells.append(", ".join(filter(None, (answer.said, answer.beside))))
                cells.append(f"{answer.seconds:.1f}")
                unclear += answer.said not in CLEAR_ANSWERS
            print(f"| {' | '.join(cells)} |", flush=True)
        highest_mib = highest_memory_bytes(daemon.pid) / 2**20
        print(f"\nthe daemon's own memory at its highest: {highest_mib:.0f} MiB")
        replaced = sum(worker.replaced for worker in client.stats().workers)
        print(f"workers replaced: {replaced}; unclear answers: {unclear}")
    return 1 if unclear or replaced else 0


if __name__ == "__main__":
    sys.exit(main())
