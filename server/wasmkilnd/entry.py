"""The script ``wasmkilnd``: it starts ``cli``, or says what has to be installed for that.

The thin client brings this script and not what the daemon needs. So this file imports the standard
library alone.
"""

import sys


def main() -> None:
    """Run the command; with one sentence where a package is not there."""
    try:
        from wasmkilnd.cli import main as run

        run()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "wasmkilnd", "wasmkiln"):
            raise
        sys.stderr.write(f"error: the daemon needs {package}: pip install 'wasmkiln[server]'\n")
        sys.exit(2)
