"""`wasmkiln compile`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln.cli import batch, tables
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE, artifact_options, connection_options
from wasmkiln.cli.progress import transfer_bars

if TYPE_CHECKING:
    from wasmkiln.artifact import Artifact
    from wasmkiln.cli.session import Session
    from wasmkiln.v1.types_pb2 import ArtifactHeader


@dataclass(frozen=True)
class Compiled:
    """One artifact's header, the seconds that the call took, and where the bytes went."""

    source: str
    header: ArtifactHeader
    call_s: float
    saved_to: Path | None


@click.command("compile")
@click.argument("sources", nargs=-1, required=True, type=MODULE, metavar="FILE|SHA256...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where to write: a file for one module; a folder for several, or one that exists, where "
    "each becomes NAME.ENGINE.cwasm. The header goes beside it as .json, the attestation as "
    ".dsse.json. Without -o nothing is written.",
)
@artifact_options()
@click.option("--no-cache", is_flag=True, help="Compile even when a tier holds the artifact.")
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
    no_cache: bool,
) -> None:
    """Get the artifacts of modules, uploading those that the daemon doesn't have."""
    session: Session = context.obj
    place = _Place(output, sources)
    with session.client() as client, transfer_bars() as bars:

        def compile_one(source: str) -> Compiled:
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
                    on_progress=show,
                )
            call_s = time.perf_counter() - start_s
            return Compiled(source, artifact.header, call_s, place.save(source, artifact))

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


class _Place:
    """Where each artifact goes. Raises click.UsageError when two would go to one file."""

    def __init__(self, output: Path | None, sources: tuple[str, ...]) -> None:
        self._output = output
        self._folder = output is not None and (len(sources) > 1 or output.is_dir())
        if output is None:
            return
        if not self._folder:
            _refuse_as_output(output, sources)
            return
        if output.exists() and not output.is_dir():
            raise click.UsageError(f"{output} is a file; several modules need a folder")
        names = [_stem(source) for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise click.UsageError(f"several modules would be written as {', '.join(twice)}")
        output.mkdir(parents=True, exist_ok=True)

    def save(self, source: str, artifact: Artifact) -> Path | None:
        if self._output is None:
            return None
        if not self._folder:
            return artifact.save(self._output)
        return artifact.save(self._output / f"{_stem(source)}.{artifact.header.engine.id}.cwasm")


def _refuse_as_output(output: Path, sources: tuple[str, ...]) -> None:
    """Raises click.UsageError for what would be lost, or is no place for two files."""
    if str(output) == "-":
        raise click.UsageError("-o takes a file or a folder; artifacts are not written to stdout")
    if output.exists() and not output.is_file():
        raise click.UsageError(f"{output} is no regular file: the header could not go beside it")
    if output.exists() and any(Path(s).exists() and output.samefile(s) for s in sources):
        raise click.UsageError(f"{output} is the module itself: it would be overwritten")


def _stem(source: str) -> str:
    return Path(source).name.removesuffix(".wasm")
