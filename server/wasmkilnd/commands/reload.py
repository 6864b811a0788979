"""``wasmkilnd reload``: have running daemons read their configuration again, and wait for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.commands.as_owner import act_as_owner, settings_of
from wasmkilnd.lifecycle.running import RunningDaemon, began, running

_HELP = {"help_option_names": ["-h", "--help"]}
_LOOK_S = 0.05


class ReloadFailed(Exception):  # noqa: N818 - says what happened
    """A daemon was not reloaded; the message says why."""


@click.command(context_settings=_HELP)
@click.option(
    "--state-dir",
    default=None,
    metavar="DIR",
    envvar="WASMKILN_STATE_DIR",
    help="The state directory of the daemons.  [env: WASMKILN_STATE_DIR]",
)
@click.option(
    "--pid",
    type=click.IntRange(2),
    default=None,
    envvar="MAINPID",
    show_envvar=True,
    help="Reload this daemon only, not every one that runs on the state directory.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each.",
)
def reload(state_dir: str | None, pid: int | None, timeout_s: float) -> None:
    """Have running daemons read settings, keys, certificates and engines again.

    As SIGHUP does; and wait, and say how it ended. Exits with 1 if a daemon could not use what it
    read: it goes on with what it had.
    """
    folder = _folder(state_dir)
    failures = []
    for daemon in _chosen(folder, pid):
        try:
            _tell(_reloaded(folder, daemon, timeout_s))
        except ReloadFailed as failure:
            failures.append(str(failure))
    if failures:
        raise ReloadFailed("; ".join(failures))


def _folder(state_dir: str | None) -> Path:
    """Return the state directory. Raises ConfigError where only the configuration names it."""
    if not state_dir:
        return settings_of({}).state_dir
    # A configuration that cannot be read is the daemon's to refuse, so that it tells of it too.
    folder = Path(state_dir).expanduser().absolute()
    act_as_owner(folder)
    return folder


def _chosen(folder: Path, pid: int | None) -> Sequence[RunningDaemon]:
    found = running(folder)
    if pid is not None:
        found = [daemon for daemon in found if daemon.pid == pid]
    if not found:
        which = "no daemon" if pid is None else f"no daemon with the process id {pid}"
        raise ReloadFailed(
            f"cannot reload: {which} serves from {folder}; name the daemon's state directory with"
            " --state-dir or WASMKILN_STATE_DIR"
        )
    return found


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
