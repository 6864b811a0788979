"""What must hold before any part of the daemon starts, and the error when it does not."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

import structlog

from wasmkilnd.lifecycle.private_folders import take_back_private
from wasmkilnd.options import limits_too_low
from wasmkilnd.ownership import NotOurs, make_folder
from wasmkilnd.settings import Settings

log = structlog.get_logger("wasmkilnd")


class CannotStart(Exception):  # noqa: N818 - says what the daemon cannot do
    """The daemon cannot start; the message says why and what to do."""


def check_limits(settings: Settings) -> None:
    """Raise CannotStart where this host or user rules a setting out."""
    if why := limits_too_low(settings):
        raise CannotStart(f"cannot run jobs: {why}")


def check_host(settings: Settings) -> None:
    """Make the state directory. Raises CannotStart where this host or user rules a setting out."""
    check_limits(settings)
    _refuse_root(settings.state_dir)
    try:
        make_folder(settings.state_dir)
    except NotOurs as refusal:
        raise CannotStart(str(refusal)) from None
    except OSError as failure:
        raise CannotStart(
            f"cannot make the state directory {settings.state_dir}: {failure.strerror};"
            " choose another with --state-dir or WASMKILN_STATE_DIR"
        ) from None
    for folder, files in take_back_private(settings):
        log.warning("took the group's rights to private files", folder=str(folder), files=files)


def _refuse_root(state_dir: Path) -> None:
    """Raise CannotStart for a root who would serve from another user's state directory.

    Its owner could change what root runs, and could not use what root makes there.
    """
    try:
        found = state_dir.stat()
    except OSError:
        return  # It is to be made, or making it fails with the reason.
    if os.geteuid() != 0 or found.st_uid == 0:
        return
    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = f"user {found.st_uid}"
        become = f"setpriv --reuid {found.st_uid} --regid {found.st_gid} --clear-groups"
    else:
        become = f"runuser -u {shlex.quote(user)} --"
    raise CannotStart(
        f"cannot serve as root from {state_dir}: it belongs to {user}, who could change what runs"
        f" here; start the service (`systemctl start wasmkilnd`), or serve as that user:"
        f" `{become} wasmkilnd serve --state-dir {shlex.quote(str(state_dir))}`"
    )
