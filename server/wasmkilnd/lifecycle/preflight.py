"""What must hold before any part of the daemon starts, and the error when it does not."""

from __future__ import annotations

import structlog

from wasmkilnd.lifecycle.private_folders import take_back_private
from wasmkilnd.options import limits_too_low
from wasmkilnd.ownership import NotOurs, make_folder, refuse_root
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
    try:
        refuse_root(settings.state_dir)
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
