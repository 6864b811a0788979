"""`wasmkiln stats`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click
from rich.live import Live

from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.seconds import Seconds
from wasmkiln.cli.session import console
from wasmkiln.cli.stats_table import stats as table

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session
    from wasmkiln.client import Client


@click.command()
@click.option(
    "--watch", is_flag=True, help="Repeat until interrupted; with --json, one line each time."
)
@click.option(
    "--interval",
    type=Seconds(0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two updates of --watch.",
)
@connection_options
@click.pass_obj
def stats(session: Session, watch: bool, interval: float) -> None:
    """Show counters and latencies of tiers, compiles and workers."""
    with session.client() as client:
        if not watch:
            _print(session, client)
        elif session.as_json or not sys.stdout.isatty():
            while True:
                _print(session, client)
                time.sleep(interval)
        else:
            with Live(
                table(client.stats()), console=console(sys.stdout), auto_refresh=False
            ) as live:
                while True:
                    time.sleep(interval)
                    live.update(table(client.stats()), refresh=True)


def _print(session: Session, client: Client) -> None:
    answer = client.stats()
    session.emit(to_document(answer), table(answer))
