"""``python -m tests.large``: print figures as Markdown; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from importlib.metadata import version
from pathlib import Path

from bench.lab import ROOT, describe_machine
from tests.corpus.modules import LARGE_MODULES
from tests.large.run import ENGINE, run
from tests.promises import broken, ended, teller

PAGE = ROOT / "docs" / "how-to" / "size.md"
FROM_HERE = "### Measured\n\n"


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="make large", description=__doc__)
    names = [module.name for module in LARGE_MODULES]
    parser.add_argument("--only", action="append", choices=names, help="this one; repeatable")
    parser.add_argument("--page", action="store_true", help=f"fill {PAGE.relative_to(ROOT)}, too")
    options, tell = parser.parse_args(), teller("large")
    modules = [one for one in LARGE_MODULES if one.name in (options.only or names)]
    with tempfile.TemporaryDirectory(prefix="wasmkiln-large-") as folder:
        result = run(Path(folder), modules, tell)
    where = f"wasmkiln {version('wasmkiln')}, {ENGINE}: {describe_machine()}."
    figures = f"{result.markdown()}\n\n{textwrap.fill(where, 99)}"
    if options.page:
        above = PAGE.read_text().partition(FROM_HERE)[0]
        PAGE.write_text(f"{above}{FROM_HERE}{figures}\n")
    return ended(tell, figures, broken(result.checks()))


if __name__ == "__main__":
    sys.exit(main())
