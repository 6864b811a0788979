"""`wasmkiln evict`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wasmkiln._requests import identify
from wasmkiln.cli import tables
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE

if TYPE_CHECKING:
    from typing import Literal

    from wasmkiln.cli.session import Session


@click.command()
@click.option(
    "--module", type=MODULE, metavar="FILE|SHA256", help="A module and all of its artifacts."
)
@click.option("--engine", metavar="ENGINE", help="Every artifact of one engine version.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option(
    "--tier",
    type=click.Choice(["memory", "host_store", "redis"]),
    help="This tier only.  [default: all tiers]",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@connection_options
@click.pass_context
def evict(
    context: click.Context,
    module: str | None,
    engine: str | None,
    everything: bool,
    tier: Literal["memory", "host_store", "redis"] | None,
    yes: bool,
) -> None:
    """Remove artifacts from the caches: of a module, of an engine, or all."""
    session: Session = context.obj
    if (module is not None) + (engine is not None) + everything != 1:
        raise click.UsageError("give one of --module, --engine and --all")
    if module is None and not yes:
        _confirm(f"every artifact of {engine}" if engine else "everything", tier)
    with session.client() as client:
        answer = client.evict(
            module_sha256=identify(module).sha256 if module is not None else None,
            engine=engine,
            everything=everything,
            tier=tier,
        )
    session.emit(to_document(answer), tables.evicted(answer))
    if answer.unreachable_tiers:
        tiers = ", ".join(answer.unreachable_tiers)
        session.note(f"error: {tiers} did not answer: entries there may be left; evict again later")
        context.exit(Exit.NOT_NOW)


def _confirm(what: str, tier: str | None) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("cannot ask for confirmation without a terminal: give --yes")
    click.confirm(
        f"Evict {what} from {f'the {tier} tier' if tier else 'all tiers'}?", abort=True, err=True
    )
