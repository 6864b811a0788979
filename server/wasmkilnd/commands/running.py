"""The daemons that run on a state directory: what commands say about them, and their reload."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.engines.install.in_use import users_of
from wasmkilnd.engines.install.store import EngineStore, InstalledEngine

reload_option = click.option(
    "--reload", "and_reload", is_flag=True, help="Have the daemon that runs take it in now."
)


def tell_daemons(state_dir: Path, then: str, *, and_reload: bool, pids: Sequence[int] = ()) -> None:
    """Reload the daemons on a state directory, or say how to; ``then`` is what they do at that.

    ``pids`` are daemons that were found before a command changed what shows them.
    """
    found = sorted({*pids, *users_of(EngineStore(state_dir).installed())})
    if not found:
        if and_reload:
            raise EngineInstallError(
                f"cannot reload: no daemon that this user can see serves engines of {state_dir};"
                f" one that runs {then} when it gets SIGHUP, or is started again"
            )
        click.echo(
            f"a daemon that runs {then} when you reload it (SIGHUP, or `systemctl reload"
            " wasmkilnd`); one that starts does so anyway",
            err=True,
        )
        return
    if not and_reload:
        kill = f"`kill -HUP {' '.join(map(str, found))}`"
        click.echo(
            f"the daemon that runs ({_processes(found)}) {then} when you reload it: {kill},"
            " `systemctl reload wasmkilnd`, or this command with --reload",
            err=True,
        )
        return
    for pid in found:
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise EngineInstallError(
                f"cannot reload process {pid}: it belongs to another user; run"
                f" `kill -HUP {pid}` as that user, or `systemctl reload wasmkilnd`"
            ) from None
    click.echo(f"the daemon that runs ({_processes(found)}) {then} now: see its log", err=True)


def refuse_if_served(engine: InstalledEngine, used: bool, names: Sequence[str]) -> None:
    """Raise EngineInstallError for an engine that a daemon serves, or that names stand for."""
    if used:
        pids = users_of([engine])
        who = f" ({_processes(pids)})" if pids else ""
        raise EngineInstallError(
            f"a daemon that runs{who} serves {engine.id}: its callers would get ENGINE_REMOVED."
            " Once none asks for it, remove it with --force"
        )
    if names:
        raise EngineInstallError(
            f"{' and '.join(names)} stand{'s' if len(names) == 1 else ''} for {engine.id}: callers"
            " would get another engine. Choose that first, with `wasmkilnd engine use`,"
            " engine_alias or default_engine, or remove it with --force"
        )


def _processes(pids: Sequence[int]) -> str:
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
