"""Holds the daemon's verdicts against the engines' own, over as many modules as one likes.

    python -m tests.verdicts [--generate N] [FOLDER_OR_FILE...]

Takes every ``.wasm`` file of the folders, and the modules of every ``.wast`` script, such as those
of the official WebAssembly test suite; `--generate` adds N modules of each kind that `generate.py`
makes. Starts a daemon of its own, has each engine's own interpreter asked the same (`direct.py`),
prints a table and each disagreement, and fails if there is one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.e2e.wasm import WASM_TOOLS
from tests.verdicts.cases import write_cases
from tests.verdicts.compare import compare, table
from tests.verdicts.generate import write_generated

_AT_ONCE = 1000


def find_modules(places: Iterable[Path], scratch: Path) -> list[Path]:
    """Return every ``.wasm`` file in ``places``, and those made from ``.wast`` scripts there."""
    found = []
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix == ".wasm":
                found.append(path)
            elif path.suffix == ".wast":
                folder = scratch / re.sub(r"\W", "_", str(path))
                folder.mkdir()
                script = ["json-from-wast", "--wasm-dir", str(folder), "-o", f"{folder}.json"]
                subprocess.run([str(WASM_TOOLS), *script, str(path)], check=False)
                found += sorted(folder.glob("*.wasm"))
    return found


def main() -> int:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.verdicts")
    parser.add_argument("--generate", type=int, default=0, metavar="N")
    parser.add_argument("places", nargs="*", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        store = installed_engines()
        paths = find_modules(args.places, scratch)
        if args.generate:
            paths += write_cases(scratch / "cases")
            paths += write_generated(scratch / "generated", args.generate)
        started = time.monotonic()
        flags = ["--redis-url", "none", "--compile-timeout-s", "120", "--quarantine-s", "0"]
        with (
            Daemon(fresh_state(scratch / "state"), flags) as daemon,
            daemon.client() as client,
        ):
            verdicts = [
                one
                for start in range(0, len(paths), _AT_ONCE)
                for one in compare(store, daemon, paths[start : start + _AT_ONCE])
            ]
            stats = client.stats()
    disagreements = [line for one in verdicts for line in one.disagreements()]
    print(f"{len(paths)} modules\n{table(verdicts)}", *disagreements, sep="\n")
    lived = stats.uptime.ToTimedelta().total_seconds()
    print(
        f"{len(disagreements)} disagreements; the daemon's uptime is {lived:.0f} s of"
        f" {time.monotonic() - started:.0f} s, workers replaced:"
        f" {sum(worker.replaced for worker in stats.workers)}"
    )
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
