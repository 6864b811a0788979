"""`wasmkiln drain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.seconds import Seconds

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command()
@click.option(
    "--grace",
    type=Seconds(),
    metavar="SECONDS",
    help="Time for running calls; 0 ends them at once.  [default: the daemon's own]",
)
@connection_options
@click.pass_obj
def drain(session: Session, grace: float | None) -> None:
    """End the daemon: it refuses new calls, finishes running ones, and exits.

    Returns at once. `wasmkiln health` exits with 3 once the daemon has ended.
    """
    with session.client() as client:
        answer = client.drain(grace)
    session.emit(to_document(answer), tables.draining(answer))
