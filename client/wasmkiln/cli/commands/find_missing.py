"""`wasmkiln find-missing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln._requests import identify
from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.options import MODULE, artifact_options
from wasmkiln.v1.types_pb2 import ArtifactKey

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command("find-missing")
@click.argument("sources", nargs=-1, required=True, type=MODULE, metavar="FILE|SHA256...")
@artifact_options(several_engines=True)
@connection_options
@click.pass_obj
def find_missing(
    session: Session,
    sources: tuple[str, ...],
    engines: tuple[str, ...],
    target: str | None,
    cpu: str | None,
    settings: dict[str, str],
) -> None:
    """Show which artifacts no tier of the daemon holds. Uploads nothing."""
    names: dict[str, str] = {}
    for source in sources:
        names.setdefault(identify(source).sha256, source)
    keys = [
        ArtifactKey(module_sha256=digest, engine=engine, target=target, cpu=cpu, settings=settings)
        for digest in names
        for engine in engines or ("",)
    ]
    with session.client() as client:
        missing = client.find_missing(keys)
    rows = [(names[key.module_sha256], key.module_sha256, key.engine) for key in missing]
    document = {
        "asked": len(keys),
        "missing": [
            {"source": source, "module_sha256": digest, "engine": engine or None}
            for source, digest, engine in rows
        ],
    }
    session.emit(document, tables.missing(rows, len(keys)))
