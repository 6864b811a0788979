"""`wasmkiln engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.json_output import to_document

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command()
@click.option("--settings", is_flag=True, help="List settings and their allowed values instead.")
@click.option("--isolation", is_flag=True, help="List what confines the engines' jobs instead.")
@connection_options
@click.pass_obj
def engines(session: Session, settings: bool, isolation: bool) -> None:
    """Show the daemon's engines, targets, cpus, settings and limits."""
    show = tables.settings if settings else tables.isolation if isolation else tables.engines
    with session.client() as client:
        answer = client.capabilities()
    session.emit(to_document(answer), show(answer))
