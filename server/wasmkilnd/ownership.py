"""Whether somebody else could change what this daemon runs or believes: the one rule for it.

Whoever can write to a file, to a folder or to a folder above it decides what lies there. So all
that is run or believed has to belong to this process' user or to root, every folder and symbolic
link on the way to it included, and nobody else may write to any of them. Two exceptions:

- Others may write to a folder above that is sticky, such as /tmp: it protects what is in it.
- A group may write that is this process' own and has no other member, since many systems make
  files so (umask 002). Keys are ``private``: for them it may not.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_OTHERS_READ = stat.S_IROTH | stat.S_IXOTH
_MOST_LINKS = 40


class NotOurs(Exception):  # noqa: N818 - says what it is
    """Somebody else could change what is to be run or believed; the message says what to do."""


def check_path(path: Path, *, private: bool = False, secret: bool = False) -> None:
    """Raise NotOurs unless nobody else can change what ``path`` leads to.

    What is not there yet is judged by the folders above it. ``private`` lets no group write,
    ``secret`` lets others not even read the file.
    """
    here, links = Path("/"), 0
    steps = list(reversed(path.absolute().parts))
    while steps:
        step = here / steps.pop()
        if step.name == "..":
            step = here.parent  # No part of here is a link any more, so this is what it means.
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return  # Whoever wants to use it will be told.
        _refuse_owner(step, found, path)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise NotOurs(f"cannot use {path}: it is a symbolic link without end")
            steps += reversed(step.readlink().parts)
            continue
        is_above = bool(steps)
        if not (is_above and found.st_mode & stat.S_ISVTX):
            _refuse_writers(step, found, path, private=private and not is_above)
        if secret and not is_above and stat.S_IMODE(found.st_mode) & _OTHERS_READ:
            raise NotOurs(
                f"cannot use {path}: other users may read it; `chmod 600 {_quoted(step)}`, and"
                " replace it if one of them may have read it"
            )
        here = step


def check_tree(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Raise NotOurs unless nobody else can change ``folder`` or anything in it.

    Folders in it that are called as ``leave_out`` says are not looked into.
    """
    check_path(folder)
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                check_path(path)
                continue
            found = entry.stat(follow_symlinks=False)
            _refuse_owner(path, found, folder)
            _refuse_writers(path, found, folder, private=False)
            if stat.S_ISDIR(found.st_mode) and entry.name not in leave_out:
                folders.append(path)


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and those above it for this user only, unless they are there.

    Raises OSError; NotOurs where somebody else could change it, before and after.
    """
    check_path(path, private=private)
    for folder in reversed(path.absolute().parents):
        # One by one: mkdir itself would make those above as the umask has it.
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    check_path(path, private=private)


def _refuse_owner(step: Path, found: os.stat_result, path: Path) -> None:
    if found.st_uid in (os.geteuid(), 0):
        return
    if step.is_relative_to(path.absolute()):
        remedy = f"`chown -R {os.geteuid()} {_quoted(path)}`"
    else:
        remedy = "choose a place where every folder above is yours or root's"
    raise NotOurs(
        f"cannot use {path}: {_named(step, path)} belongs to user {found.st_uid}, who could change"
        f" what runs here; {remedy}, or run as that user"
    )


def _refuse_writers(step: Path, found: os.stat_result, path: Path, *, private: bool) -> None:
    writers = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not writers:
        return
    of_ours = writers == stat.S_IWGRP and not private
    # What an access list allows to others is shown as a right of the group.
    if of_ours and _nobody_else_in(found.st_gid, os.geteuid()) and not _has_access_list(step):
        return
    remedy = f"chmod -R go-w {_quoted(path)}"
    if not step.is_relative_to(path.absolute()):
        remedy = f"chmod go-w {_quoted(step)}"
    raise NotOurs(
        f"cannot use {path}: other users may write to {_named(step, path)}, and so change what"
        f" runs here; `{remedy}`"
    )


def _named(step: Path, path: Path) -> str:
    return "it" if step == path.absolute() else str(step)


@lru_cache(maxsize=64)
def _nobody_else_in(gid: int, user: int) -> bool:
    """Whether a group is this process' own, and this machine knows no other member of it."""
    if gid not in (os.getegid(), *os.getgroups()):
        return False
    users = pwd.getpwall()
    members = {one.pw_name for one in users if one.pw_gid == gid}
    with suppress(KeyError):  # A group without a name, as containers have them.
        members |= set(grp.getgrgid(gid).gr_mem)
    return members <= {one.pw_name for one in users if one.pw_uid in (user, 0)}


def _has_access_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return False  # A file system without them.


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
