"""The daemons that run on a state directory: have them read again what a command changed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.lifecycle.running import RunningDaemon, began, running

RELOAD_S = 60.0
"""How long a daemon has to read everything again."""
_LOOK_S = 0.05

reload_option = click.option(
    "--reload", "and_reload", is_flag=True, help="Have the daemon that runs take it in now."
)


class ReloadFailed(Exception):  # noqa: N818 - says what happened
    """A daemon was not reloaded; the message says why."""


def reload_each(folder: Path, daemons: Sequence[RunningDaemon], timeout_s: float) -> None:
    """Reload each daemon of a state directory, and say how that ended.

    Raises ReloadFailed for those that went on with what they had, or did not answer.
    """
    failures = []
    for daemon in daemons:
        try:
            _tell(_reloaded(folder, daemon, timeout_s))
        except ReloadFailed as failure:
            failures.append(str(failure))
    if failures:
        raise ReloadFailed("; ".join(failures))


def take_in(folder: Path, then: str, *, and_reload: bool) -> None:
    """Reload the daemons of a state directory, or say how to; ``then`` is what they do at that.

    Raises ReloadFailed.
    """
    found = running(folder)
    if and_reload:
        if not found:
            raise ReloadFailed(
                f"cannot reload: no daemon serves from {folder}; one that starts {then} anyway"
            )
        reload_each(folder, found, RELOAD_S)
    elif found:
        click.echo(
            f"the daemon that runs ({processes(found)}) {then} when you reload it:"
            f" `wasmkilnd reload --state-dir {folder}`, `systemctl reload wasmkilnd`, or this"
            " command with --reload",
            err=True,
        )
    else:
        click.echo(
            f"a daemon that runs {then} when you reload it (`wasmkilnd reload`, or `systemctl"
            " reload wasmkilnd`); one that starts does so anyway",
            err=True,
        )


def processes(daemons: Sequence[RunningDaemon]) -> str:
    """Return the process ids of daemons, in words."""
    pids = ", ".join(str(daemon.pid) for daemon in daemons)
    return f"process{'es' if len(daemons) > 1 else ''} {pids}"


def _reloaded(folder: Path, before: RunningDaemon, timeout_s: float) -> RunningDaemon:
    """Reload a daemon; return what it says of itself afterwards. Raises ReloadFailed."""
    who = f"the daemon with the process id {before.pid}"
    try:
        os.kill(before.pid, signal.SIGHUP)
    except OSError as failure:
        raise ReloadFailed(f"cannot reload {who}: {failure.strerror}") from None
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for now in running(folder):
            # One that was under way before the signal may have read what was there before.
            if now.pid == before.pid and now.reloads_ended > before.reloads_begun:
                return now
        if began(before.pid) != before.began:
            raise ReloadFailed(f"cannot reload {who}: it has ended")
        time.sleep(_LOOK_S)
    raise ReloadFailed(
        f"cannot say whether {who} was reloaded: it has not finished within {timeout_s:g} s; look"
        " into its log"
    )


def _tell(daemon: RunningDaemon) -> None:
    who = f"the daemon with the process id {daemon.pid}"
    if daemon.refused:
        raise ReloadFailed(f"cannot reload {who}, which goes on with what it had: {daemon.refused}")
    click.echo(f"{who} is reloaded: {daemon.status}", err=True)
    for setting in daemon.need_restart:
        click.echo(f"warning: {setting} has changed, and needs a restart", err=True)
