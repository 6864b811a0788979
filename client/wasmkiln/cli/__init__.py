"""The `wasmkiln` command. Importing this module needs nothing but the standard library."""

import io
import sys


def main() -> None:
    """Runs the command and exits; with one sentence when its packages are not installed."""
    try:
        from wasmkiln.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print(
            f"error: the wasmkiln command needs {error.name}: pip install 'wasmkiln[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    # What a terminal's encoding does not have is no reason to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="wasmkiln")
