"""`wasmkiln compile`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln.cli import batch, tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE, artifact_options, parsed_size
from wasmkiln.cli.place import Place
from wasmkiln.cli.progress import transfer_bars

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command("compile")
@click.argument("sources", nargs=-1, required=True, type=MODULE, metavar="FILE|SHA256...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where to write: a file for one module, or a folder, where each artifact becomes "
    "NAME.ENGINE.cwasm. The header goes beside it as .json, the attestation as .dsse.json. "
    "Without -o nothing is written.",
)
@artifact_options()
@click.option(
    "--max-artifact-bytes",
    callback=parsed_size,
    metavar="SIZE",
    help="Refuse an artifact above this size, such as 512MiB.  "
    "[default: $WASMKILN_MAX_ARTIFACT_BYTES, else 1GiB]",
)
@click.option(
    "--compression/--no-compression",
    default=None,
    help="Whether the daemon may send compressed artifacts.  "
    "[default: $WASMKILN_COMPRESSION, else only from another machine]",
)
@click.option("--no-cache", is_flag=True, help="Compile even when a tier holds the artifact.")
@click.option(
    "--fast",
    is_flag=True,
    help="Take an artifact of the engine's fast compiler if the optimised one is not there yet; "
    "the daemon then compiles that behind.",
)
@connection_options
@click.pass_context
def compile_(
    context: click.Context,
    sources: tuple[str, ...],
    output: Path | None,
    engine: str | None,
    target: str | None,
    cpu: str | None,
    settings: dict[str, str],
    max_artifact_bytes: int | None,
    compression: bool | None,
    no_cache: bool,
    fast: bool,
) -> None:
    """Get the artifacts of modules; upload modules that the daemon does not have."""
    session: Session = context.obj
    place = Place(output, sources)
    client = session.client(max_artifact_bytes=max_artifact_bytes, compression=compression)
    with client, transfer_bars() as bars:

        def compile_one(source: str) -> tables.Compiled:
            start_s = time.perf_counter()
            with bars.compiling(source) as show:
                artifact = client.compile(
                    source,
                    engine=engine,
                    target=target,
                    cpu=cpu,
                    settings=settings,
                    skip_cache_lookup=no_cache,
                    omit_artifact=output is None,
                    accept_fast=fast,
                    on_progress=show,
                )
            call_s = time.perf_counter() - start_s
            return tables.Compiled(source, artifact.header, call_s, place.save(source, artifact))

        done = batch.attempt_each(sources, compile_one)
    compiled = [item.result for item in done if item.result is not None]
    document = {
        "artifacts": [
            {
                "source": one.source,
                "saved_to": str(one.saved_to) if one.saved_to else None,
                "call_s": round(one.call_s, 6),
                **to_document(one.header),
            }
            for one in compiled
        ],
        "errors": batch.errors_in(done),
    }
    session.emit(document, *([tables.compiled(compiled)] if compiled else []))
    context.exit(batch.report_failures(session, done))
