"""One run of the command: makes its client, and writes its results and failures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType

from wasmkiln._untrusted import one_line
from wasmkiln.access import TLS
from wasmkiln.cli.json_output import dumps, error_document
from wasmkiln.client import Client

if TYPE_CHECKING:
    from typing import TextIO

# For pipes and files: rich would assume 80 columns and cut digests.
_UNLIMITED_WIDTH = 240


@dataclass
class Session:
    """One run of the command. The options in options.py fill in its fields."""

    address: str | None = None
    profile: str | None = None
    tls: bool | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    token_file: str | None = None
    namespace: str | None = None
    timeout_s: float | None = None
    as_json: bool = False

    def client(
        self,
        *,
        max_attempts: int = 3,
        max_artifact_bytes: int | None = None,
        compression: bool | None = None,
    ) -> Client:
        """Return a client for the options. Raise click.UsageError for invalid ones."""
        try:
            return Client(
                self.address,
                profile=self.profile,
                tls=self._tls(),
                token_file=self.token_file,
                namespace=self.namespace,
                timeout_s=self.timeout_s,
                max_attempts=max_attempts,
                max_artifact_bytes=max_artifact_bytes,
                compression=compression,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def _tls(self) -> TLS | bool | None:
        """Return what the options say about TLS; None if they say nothing. Raise ValueError."""
        if self.ca_file or self.cert_file or self.key_file or self.server_name:
            return TLS(self.ca_file, self.cert_file, self.key_file, self.server_name)
        return self.tls

    def emit(self, document: Any, *tables: RenderableType) -> None:
        """Write a result to stdout: the document with --json, else the tables."""
        if self.as_json:
            click.echo(dumps(document))
        else:
            lines = [one_line(each) if isinstance(each, str) else each for each in tables]
            console(sys.stdout).print(*lines, sep="\n")

    def note(self, sentence: str) -> None:
        """Write a sentence to stderr."""
        click.echo(one_line(sentence), err=True)

    def report(self, error: Exception, source: str | None = None) -> None:
        """Write a failure to stderr: a sentence, and with --json an object after it."""
        if isinstance(error, OSError) and error.filename is not None:
            # str(error) begins with errno; and the file may not be the source.
            self.note(f"error: {error.filename}: {error.strerror}")
        else:
            self.note(f"error: {source}: {error}" if source else f"error: {error}")
        if self.as_json:
            click.echo(dumps(error_document(error, source)), err=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise, so that app.py handles it; rich would exit with 1."""
        raise BrokenPipeError


def console(file: TextIO) -> Console:
    """Return a console that prints text as it is: rich must not read names as markup."""
    width = None if file.isatty() else _UNLIMITED_WIDTH
    return _Console(file=file, width=width, markup=False, emoji=False, highlight=False)
