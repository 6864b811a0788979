"""`wasmkiln path`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.options import MODULE, artifact_options

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command("path")
@click.argument("source", type=MODULE, metavar="FILE|SHA256")
@artifact_options()
@connection_options
@click.pass_obj
def path(
    session: Session,
    source: str,
    engine: str | None,
    target: str | None,
    cpu: str | None,
    settings: dict[str, str],
) -> None:
    """Print where the artifact lies in this machine's host store; compile it if need be.

    For programs that load a file: wasmtime run --allow-precompiled "$(wasmkiln path m.wasm
    --engine wasmtime)". Without a daemon it finds what is there already.
    """
    with session.client() as client:
        found = client.host_file(source, engine=engine, target=target, cpu=cpu, settings=settings)
    if session.as_json:
        session.emit({"path": str(found)})
    else:
        click.echo(os.fsencode(found))  # as it is, so that a shell can use it
