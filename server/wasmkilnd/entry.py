"""The script ``wasmkilnd``: it starts ``cli``, or says what has to be installed for that.

The thin client brings this script and not what the daemon needs. So this file imports the standard
library alone.
"""

import signal
import sys


def main() -> None:
    """Run the command; with one sentence where a package is not there."""
    if sys.argv[1:2] == ["serve"]:
        # A SIGHUP waits until the daemon can reload: it would kill one that is still importing.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        from wasmkilnd.cli import main as run

        run()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "wasmkilnd", "wasmkiln"):
            raise
        sys.stderr.write(f"error: the daemon needs {package}: pip install 'wasmkiln[server]'\n")
        sys.exit(2)
