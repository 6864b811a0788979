"""`wasmkiln whoami`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.grid import Grid
from wasmkiln.cli.json_output import to_document

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session

_MAX_ROLES = 50


@click.command()
@connection_options
@click.pass_obj
def whoami(session: Session) -> None:
    """Show who you are to the daemon, and what you may do there."""
    with session.client() as client:
        caller = client.capabilities().caller
    table = Grid("daemon", "identity", "roles", "namespace")
    table.row(
        client.address,
        caller.identity or "anybody: the daemon asks for no identity",
        ", ".join(caller.roles[:_MAX_ROLES]) or "none",
        caller.namespace or "the default one",
    )
    session.emit({"address": client.address, **to_document(caller)}, table.shown())
