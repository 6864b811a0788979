"""`wasmkiln pin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wasmkiln._requests import identify
from wasmkiln.cli import pin_table
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import Exit, exit_for
from wasmkiln.cli.json_output import to_document
from wasmkiln.cli.options import MODULE
from wasmkiln.errors import ModuleNotLoaded, PinsFull

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session
    from wasmkiln.v1.admin_service_pb2 import Pin

_REDIS = "error: redis did not answer: other daemons learn of it when it does"


@click.group()
def pin() -> None:
    """Pin modules: no tier evicts them or their artifacts to make room for others."""


@pin.command("ls")
@connection_options
@click.pass_context
def ls(context: click.Context) -> None:
    """List the pinned modules, and what each tier has of them."""
    session: Session = context.obj
    with session.client() as client:
        answer = client.pins()
    session.emit(to_document(answer), pin_table.pins(answer.pins))


@pin.command("add")
@click.argument("modules", type=MODULE, metavar="FILE|SHA256...", nargs=-1, required=True)
@connection_options
@click.pass_context
def add(context: click.Context, modules: tuple[str, ...]) -> None:
    """Pin modules that the daemon has, by file or digest."""
    session: Session = context.obj
    pins: list[Pin] = []
    reached, code = True, Exit.OK
    with session.client() as client:
        for module in modules:
            try:
                answer = client.pin(identify(module).sha256)
            except (ModuleNotLoaded, PinsFull) as error:
                # The others can be pinned still.
                session.report(error, module)
                code = exit_for(error)
            else:
                pins.append(answer.pin)
                reached = reached and not answer.redis_unreachable
    document = {"pins": [to_document(each) for each in pins], "redis_unreachable": not reached}
    _end(context, session, document, pin_table.pins(pins), reached, code)


@pin.command("rm")
@click.argument("modules", type=MODULE, metavar="FILE|SHA256...", nargs=-1, required=True)
@connection_options
@click.pass_context
def rm(context: click.Context, modules: tuple[str, ...]) -> None:
    """Unpin modules. Their entries stay until others need the room, or they expire."""
    session: Session = context.obj
    removed, reached = 0, True
    with session.client() as client:
        for module in modules:
            answer = client.unpin(identify(module).sha256)
            removed += answer.removed
            reached = reached and not answer.redis_unreachable
    document = {"removed": removed, "redis_unreachable": not reached}
    _end(context, session, document, f"unpinned {removed} of {len(modules)}", reached, Exit.OK)


def _end(
    context: click.Context, session: Session, document: Any, shown: Any, reached: bool, code: Exit
) -> None:
    session.emit(document, shown)
    if not reached:
        session.note(_REDIS)
        code = code or Exit.NOT_NOW
    if code:
        context.exit(code)
