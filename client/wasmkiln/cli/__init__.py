"""The `wasmkiln` command: one sub-command for each thing that a person does with a daemon.

    app          the program: parser, session, exits and errors, JSON
    connection   options: those of every command, those that choose an artifact, types of values
    inputs       several inputs in one run: one that fails does not stop the others
    commands     all commands but `warm`; `place`: where `compile -o` writes
    warm, oci    `warm`, and modules in images: folders in OCI's layout
    text         what people read: tables, sentences, numbers, progress

What scripts can rely on: a result goes to stdout, as tables or as one JSON document, and all
else to stderr; a failure is one line that begins with "error: "; the exit code says what to do
next. What a daemon, an engine or a file calls itself is shown as one printable line and never
steers the terminal, and a table shows 1,000 rows at most.

A module imports the client inside of what needs it: grpc takes longer than all else.
"""

import io
import os
import sys


def main() -> None:
    """Run the command and exit; with one sentence where click is not installed."""
    # gRPC reads this when it is imported, and else writes a line for each failed handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A stream that the caller has closed leads nowhere; else the next file would get its number.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for the whole run
    # Escape characters that the terminal's encoding does not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from wasmkiln.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        needs = "error: the wasmkiln command needs click: pip install 'wasmkiln[cli]'"
        print(needs, file=sys.stderr)
        sys.exit(2)
    app(prog_name="wasmkiln")
