"""What every command shares: the connection's options, and where output goes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType

from wasmkiln._untrusted import one_line
from wasmkiln.cli.json_output import dumps, error_document
from wasmkiln.client import Client

if TYPE_CHECKING:
    from typing import TextIO

# For pipes and files, where rich would otherwise assume 80 columns and cut digests.
_UNLIMITED_WIDTH = 240


@dataclass
class Session:
    """One run of the command. The options fill it in; see options.py."""

    address: str | None = None
    timeout_s: float | None = None
    as_json: bool = False

    def client(self, *, max_attempts: int = 3, max_artifact_bytes: int | None = None) -> Client:
        """A client as the options say. Raises click.UsageError when they can't be."""
        try:
            return Client(
                self.address,
                timeout_s=self.timeout_s,
                max_attempts=max_attempts,
                max_artifact_bytes=max_artifact_bytes,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def emit(self, document: Any, *tables: RenderableType) -> None:
        """Writes a result to stdout: the document with --json, else the tables."""
        if self.as_json:
            click.echo(dumps(document))
        else:
            lines = [one_line(each) if isinstance(each, str) else each for each in tables]
            console(sys.stdout).print(*lines, sep="\n")

    def note(self, sentence: str) -> None:
        """Tells a person something on stderr."""
        click.echo(one_line(sentence), err=True)

    def report(self, error: Exception, source: str | None = None) -> None:
        """Writes a failure to stderr: a sentence, and with --json an object after it."""
        if isinstance(error, OSError) and error.filename is not None:
            # Its own text has a number first; and what it was about may be another file.
            self.note(f"error: {error.filename}: {error.strerror}")
        else:
            self.note(f"error: {source}: {error}" if source else f"error: {error}")
        if self.as_json:
            click.echo(dumps(error_document(error, source)), err=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to app.py, where rich would exit with 1."""
        raise BrokenPipeError


def console(file: TextIO) -> Console:
    """A console that takes text as it is: it comes from files' names and engines."""
    width = None if file.isatty() else _UNLIMITED_WIDTH
    return _Console(file=file, width=width, markup=False, emoji=False, highlight=False)
