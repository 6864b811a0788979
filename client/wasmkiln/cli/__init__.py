"""The `wasmkiln` command: one sub-command for each thing that a person does with a daemon.

    app          the group of commands: turns every failure into one sentence and an exit code
    commands/    one file for each command: its options, its call, its output
    options, seconds      options that several commands take, such as --engine
    connection_options    those of every command: --address, --profile, --tls, …
    session      one run: makes the client, writes results to stdout and failures to stderr
    batch        several inputs in one run: one that fails does not stop the others
    parallel     work in several threads at once, which an interrupt ends
    warming/     what `warm` warms, where that comes from, and the work itself
    exits        the exit codes, in one table that --help prints too
    place        where `compile -o` writes, and what it refuses to write over
    tables, stats_table, warm_table, grid, text    what people read
    json_output           what scripts read (--json)
    progress              bars on stderr, on a terminal; `warm` has lines elsewhere

What scripts can rely on: a result goes to stdout, as tables or as one JSON document, and all
else to stderr; a failure is one line that begins with "error: "; the exit code says what to do
next. What a daemon, an engine or a file calls itself is shown as one printable line and never
steers the terminal, and a table shows 1,000 rows at most.

The daemon's own command, wasmkilnd, borrows `text.size`, `text.one_line` and
`session.console`. Importing this module needs nothing but the standard library: so `main` can
say what to install where click or rich is missing.
"""

import io
import os
import sys


def main() -> None:
    """Run the command and exit; with one sentence where click or rich is not installed."""
    # gRPC reads this when it is imported, and else writes a line for each failed handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
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
    # Escape characters that the terminal's encoding does not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="wasmkiln")
