"""Where the host store is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV = "WASMKILN_HOST_STORE_DIR"
NONE = "none"
"""As argument or in the environment: use no host store."""

# Where the systemd unit has it.
SYSTEM = Path("/var/cache/wasmkiln")


def candidates(argument: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> list[Path]:
    """Return the directories where the store may be, the first that exists counts.

    An argument, else WASMKILN_HOST_STORE_DIR, leaves one directory, or none if it is "none".
    """
    chosen = os.fspath(argument) if argument is not None else environ.get(ENV, "")
    if chosen:
        return [] if chosen == NONE else [Path(chosen).expanduser()]
    state = state_dir(environ)
    return [*([state / "host_store"] if state else []), SYSTEM]


def state_dir(environ: Mapping[str, str]) -> Path | None:
    """Return the default state directory of a daemon of this user; None without a home.

    The same as `default_state_dir` of the daemon; a test compares them.
    """
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():  # the XDG specification says to ignore a relative path
        return state_home / "wasmkiln"
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path.home()
        except RuntimeError:
            return None
    return home / ".local" / "state" / "wasmkiln"
