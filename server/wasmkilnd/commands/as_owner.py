"""Run a command that root gave as the user who owns the state directory.

A service runs as a user of its own, and uses no file that somebody else owns or may change. Root
may do all that this user may: so a command of root's becomes this user, for good, before it reads
or writes any of the files. What it makes belongs to whom it is for.

The configuration is read before that, as root. ``settings_of`` therefore reads it once.

Where a container platform let the group of a volume write to private files, each command takes
that back first, as the daemon does when it starts: it would refuse the files.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from wasmkilnd.lifecycle.private_folders import take_back_private
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import FlagValue, load

# They lead into the home directory of the user who gave the command.
_OF_THE_CALLER = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


@dataclass(frozen=True, slots=True)
class Acting:
    """Whom this process acts as, and why."""

    user: str
    folder: Path

    @property
    def note(self) -> str:
        """A sentence for the person whose command failed."""
        return (
            f"this command acts as {self.user}, who owns {self.folder}; files that only root may"
            " read or write are closed to it"
        )


_acting: Acting | None = None


def acting() -> Acting | None:
    """Return whom this process acts as, None for whoever gave the command."""
    return _acting


def invoker() -> int:
    """Return the number of the user who gave the command."""
    return 0 if _acting else os.getuid()


def settings_of(
    flags: Mapping[str, FlagValue],
    config: Path | None = None,
    folder: Callable[[Settings], Path] = lambda settings: settings.state_dir,
) -> Settings:
    """Return the settings, read once for each command; act as the owner of ``folder``.

    Raises ConfigError.
    """
    known: dict[str, Settings] = click.get_current_context().meta.setdefault(__name__, {})
    key = repr((sorted(flags.items()), config))
    if key in known:
        return known[key]
    settings = load(flags, os.environ, config).settings
    act_on(settings, folder(settings))
    return known.setdefault(key, settings)


def act_on(settings: Settings, folder: Path) -> None:
    """Become the owner of ``folder``, and take back what the group of a volume may write to."""
    act_as_owner(folder)
    for private, files in take_back_private(settings):
        click.echo(f"note: took the group's rights to {files} private files: {private}", err=True)


def act_as_owner(folder: Path) -> None:
    """Become the owner of ``folder``, if this process is root and somebody else owns it.

    Where it does not exist yet, the commands decide who makes it: nothing happens.
    """
    if os.geteuid() != 0:
        return
    try:
        found = folder.stat()
    except OSError:
        return  # Using it fails later, with the reason.
    if found.st_uid == 0:
        return
    user, home, group = _account(found)
    if user:
        os.initgroups(user, group)
    else:
        os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(found.st_uid, found.st_uid, found.st_uid)
    for name in _OF_THE_CALLER:
        os.environ.pop(name, None)
    os.environ["HOME"] = str(home if os.access(home, os.W_OK) else folder)
    global _acting
    _acting = Acting(user or f"user {found.st_uid}", folder)


def _account(found: os.stat_result) -> tuple[str, Path, int]:
    """Return name, home and group of a file's owner; of one without a name, the file's group."""
    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:
        return "", Path("/"), found.st_gid
    return entry.pw_name, Path(entry.pw_dir), entry.pw_gid
