"""Shows what each module of the catalogue does to each engine, under a daemon's limits.

    python -m tests.hostile [--only NAME]... [-- FLAGS OF THE DAEMON]

Prints a Markdown table. The exit code is 1 if a module got anything but a clear answer, or if
the daemon did not serve as before afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.hostile.answers import CLEAR_ANSWERS, answer, highest_memory_bytes
from tests.hostile.catalogue import CATALOGUE

ENGINES = ("wasmer-1.1.0", "wasmtime-50.0.1")


def main() -> int:
    """Run what the command line names, one module at a time."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    installed_engines()
    unclear = 0
    print(
        "| module | bytes | expensive because of | "
        + " | ".join(f"{e} | s" for e in ENGINES)
        + " |"
    )
    print("|---|---|---|" + "---|---|" * len(ENGINES))
    with tempfile.TemporaryDirectory() as folder:
        # The daemon's own limit of time: daemons of other tests have more, for busy machines.
        limits = ["--compile-timeout-s", "30"]
        flags = ["--redis-url", "none", "--quarantine-s", "0", *limits, *args.flags]
        with (
            Daemon(fresh_state(Path(folder) / "state"), flags) as daemon,
            daemon.client(max_attempts=1, timeout_s=300) as client,
        ):
            for number, hostile in enumerate(CATALOGUE):
                if args.only and hostile.name not in args.only:
                    continue
                module = hostile.build()
                cells = [hostile.name, f"{len(module):,}", hostile.hurts_by]
                for engine in ENGINES:
                    started = time.monotonic()
                    said, beside = answer(client, module, engine)
                    cells += [
                        ", ".join(filter(None, (said, beside))),
                        f"{time.monotonic() - started:.1f}",
                    ]
                    unclear += said not in CLEAR_ANSWERS
                    client.compile(wasm.adder(number), engine=engine, skip_cache_lookup=True)
                print("| " + " | ".join(cells) + " |", flush=True)
            highest_mib = highest_memory_bytes(daemon.pid) / 2**20
            print(f"\nthe daemon's own memory at its highest: {highest_mib:.0f} MiB")
            replaced = sum(worker.replaced for worker in client.stats().workers)
            print(f"workers replaced: {replaced}; unclear answers: {unclear}")
    return 1 if unclear or replaced else 0


if __name__ == "__main__":
    sys.exit(main())
