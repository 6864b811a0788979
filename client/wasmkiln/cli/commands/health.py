"""`wasmkiln health`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command()
@click.argument("service", default="")
@connection_options
@click.pass_context
def health(context: click.Context, service: str) -> None:
    """Show whether the daemon, or one SERVICE of it, is serving."""
    session: Session = context.obj
    with session.client() as client:
        status = client.health(service)
    document = {"address": client.address, "service": service, "status": status}
    session.emit(document, status)
    context.exit(Exit.OK if status == "SERVING" else Exit.NOT_NOW)
