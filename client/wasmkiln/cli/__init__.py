"""The `wasmkiln` command. Importing this module needs nothing but the standard library."""

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
    app(prog_name="wasmkiln")
