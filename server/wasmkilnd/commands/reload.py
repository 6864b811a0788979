"""``wasmkilnd reload``: have running daemons read their configuration again, and wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.commands.as_owner import act_as_owner, settings_of
from wasmkilnd.commands.running import RELOAD_S, ReloadFailed, reload_each
from wasmkilnd.lifecycle.running import RunningDaemon, running
from wasmkilnd.setting_values import expanded
from wasmkilnd.settings_loader import ConfigError

_HELP = {"help_option_names": ["-h", "--help"]}


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
    default=RELOAD_S,
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
    reload_each(folder, _chosen(folder, pid), timeout_s)


def _folder(state_dir: str | None) -> Path:
    """Return the state directory. Raises ConfigError where only the configuration names it."""
    if not state_dir:
        return settings_of({}).state_dir
    # A configuration that cannot be read is the daemon's to refuse, so that it tells of it too.
    try:
        folder = expanded(state_dir).absolute()
    except ValueError as failure:
        raise ConfigError(f"cannot use the state directory: {failure}") from None
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
