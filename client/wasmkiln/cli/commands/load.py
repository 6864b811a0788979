"""`wasmkiln load`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln.cli import batch, tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE_FILE
from wasmkiln.cli.progress import transfer_bars

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session
    from wasmkiln.v1.module_service_pb2 import LoadResponse


@click.command()
@click.argument("files", nargs=-1, required=True, type=MODULE_FILE, metavar="FILE...")
@click.option(
    "--engine", metavar="ENGINE", help="The engine that validates, e.g. wasmtime or wasmer-1.1.0."
)
@connection_options
@click.pass_context
def load(context: click.Context, files: tuple[str, ...], engine: str | None) -> None:
    """Upload modules: the daemon validates and stores them."""
    session: Session = context.obj
    with session.client() as client, transfer_bars() as bars:

        def upload(file: str) -> LoadResponse:
            module = Path(file).read_bytes()
            with bars.uploading(file, len(module)):
                return client.load(
                    module, expected_sha256=hashlib.sha256(module).hexdigest(), engine=engine
                )

        done = batch.attempt_each(files, upload)
    loaded = [(item.source, item.result) for item in done if item.result is not None]
    document = {
        "modules": [{"file": file, **to_document(answer)} for file, answer in loaded],
        "errors": batch.errors_in(done),
    }
    session.emit(document, *([tables.loaded(loaded)] if loaded else []))
    context.exit(batch.report_failures(session, done))
