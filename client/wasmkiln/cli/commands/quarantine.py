"""`wasmkiln quarantine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln._requests import identify
from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.group()
def quarantine() -> None:
    """Show or release modules that broke a compiler and are refused for a while."""


@quarantine.command("ls")
@connection_options
@click.pass_context
def ls(context: click.Context) -> None:
    """List the refused modules, why, and for how long."""
    session: Session = context.obj
    with session.client() as client:
        answer = client.quarantined()
    session.emit(to_document(answer), tables.quarantined(answer))


@quarantine.command("release")
@click.argument("module", type=MODULE, metavar="FILE|SHA256", required=False)
@click.option("--all", "everything", is_flag=True, help="Every module.")
@connection_options
@click.pass_context
def release(context: click.Context, module: str | None, everything: bool) -> None:
    """Allow a module to be compiled again, and forget its failures."""
    session: Session = context.obj
    if (module is not None) + everything != 1:
        raise click.UsageError("give a module, or --all")
    with session.client() as client:
        answer = client.release(
            identify(module).sha256 if module is not None else None, everything=everything
        )
    session.emit(to_document(answer), f"released {answer.released}")
    if answer.redis_unreachable:
        session.note(
            "error: redis did not answer: other daemons may still refuse; release again later"
        )
        context.exit(Exit.NOT_NOW)
