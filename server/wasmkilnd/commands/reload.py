"""``wasmkilnd reload``, and ``--reload``: have running daemons read again what changed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.commands.shared import say
from wasmkilnd.errors import CannotUse
from wasmkilnd.files.ownership import refuse_root
from wasmkilnd.lifecycle.running import RunningDaemon, began, running
from wasmkilnd.settings_loader import load

_TIMEOUT_S = 60.0

reload_option = click.option("--reload", "and_reload", is_flag=True, help="Reload daemons now.")


@click.command()
@click.option("--state-dir", metavar="DIR", envvar="WASMKILN_STATE_DIR", show_envvar=True)
def reload(state_dir: str | None) -> None:
    """Have the daemons of a state directory read settings, keys, certificates and engines again.

    As SIGHUP does; and wait, and say how it ended. Exits with 1 if a daemon could not use what it
    read: it goes on with what it had.
    """
    # A configuration that cannot be read is the daemon's to refuse, so that it tells of it too.
    loaded = load({"state_dir": state_dir}, {}) if state_dir else load({}, os.environ)
    refuse_root(loaded.settings.state_dir)
    _reload_each(loaded.settings.state_dir)


def take_in(folder: Path, then: str, *, and_reload: bool) -> None:
    """Reload the daemons of a state directory, or say how to; ``then`` is what they do at that.

    Raises CannotUse.
    """
    if and_reload:
        _reload_each(folder)
    elif found := running(folder):
        say(
            f"the daemon that runs ({processes(found)}) {then} when you reload it: `wasmkilnd"
            f" reload --state-dir {folder}`, `systemctl reload wasmkilnd`, or this command with"
            " --reload"
        )


def processes(daemons: Sequence[RunningDaemon]) -> str:
    """Return the process ids of daemons, in words."""
    return f"process {', '.join(str(daemon.pid) for daemon in daemons)}"


def _reload_each(folder: Path) -> None:
    """Raise CannotUse for daemons that went on with what they had, or did not answer."""
    daemons = running(folder)
    if not daemons:
        raise CannotUse(
            f"cannot reload: no daemon serves from {folder}; name the state directory of one with"
            " --state-dir or WASMKILN_STATE_DIR"
        )
    failures = [_reload(folder, daemon) for daemon in daemons]
    if any(failures):
        raise CannotUse("; ".join(filter(None, failures)))


def _reload(folder: Path, before: RunningDaemon) -> str:
    """Reload a daemon, and say how that ended. Return why it failed, or nothing."""
    who = f"the daemon with the process id {before.pid}"
    try:
        os.kill(before.pid, signal.SIGHUP)
    except OSError as failure:
        return f"cannot reload {who}: {failure.strerror}"
    deadline_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline_s:
        for now in running(folder):
            # One that was under way before the signal may have read what was there before.
            if now.pid == before.pid and now.reloads_ended > before.reloads_begun:
                if now.refused:
                    return f"cannot reload {who}, which goes on with what it had: {now.refused}"
                say(f"{who} is reloaded: {now.status}")
                for setting in now.need_restart:
                    say(f"warning: {setting} has changed, and needs a restart")
                return ""
        if began(before.pid) != before.began:
            return f"cannot reload {who}: it has ended"
        time.sleep(0.05)
    return (
        f"cannot say whether {who} was reloaded: it has not finished within {_TIMEOUT_S:g} s; look"
        " into its log"
    )
