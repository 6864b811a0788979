"""The one rule on who may own and write the files that this daemon runs or trusts.

A user who can write to a file, its folder or a folder above decides what the daemon finds there.
So every file that the daemon runs or trusts, and every folder and symbolic link on the way to it,
must belong to this process's user or to root, and no other user may write to it. Two exceptions:

- Other users may write to a folder above that is sticky, such as /tmp: it protects its content.
- A group of this process that has no other member may write, since many systems create files so
  (umask 002). Not to keys: they are ``private``. ``take_back`` makes those private again that a
  container platform opened to the group of a volume.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
import sys
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from wasmkilnd.errors import CannotUse

_OTHERS_READ = stat.S_IROTH | stat.S_IXOTH
# More than any path has, links followed: a link may lead to itself.
_MOST_STEPS = 1000
# What this user cannot look into, it cannot use.
_OUT_OF_REACH = (FileNotFoundError, NotADirectoryError, PermissionError)


class NotOurs(CannotUse):
    """Another user could change what the daemon runs or trusts; the message says what to do."""


def check_path(path: Path, *, private: bool = False, secret: bool = False) -> None:
    """Raise NotOurs if another user can change what ``path`` leads to.

    For a path that does not exist yet, the folders above it decide. With ``private`` no group may
    write; with ``secret`` other users may not even read the file.
    """
    here, steps = Path("/"), list(reversed(path.absolute().parts))
    for _ in range(_MOST_STEPS):
        if not steps:
            return
        step = here / steps.pop()
        if step.name == "..":
            step = here.parent  # The path so far has no link left, so its parent is the right one.
        try:
            found = step.lstat()
        except _OUT_OF_REACH:
            return  # Opening the path fails later, with the reason.
        is_last = not steps
        _refuse(step, found, path, above=not is_last, private=private and is_last)
        if stat.S_ISLNK(found.st_mode):
            steps += reversed(step.readlink().parts)
            continue
        if secret and is_last and stat.S_IMODE(found.st_mode) & _OTHERS_READ:
            remedy = f"`chmod o= {_quoted(step)}` (a Secret of Kubernetes: `defaultMode: 0440`)"
            raise NotOurs(
                f"cannot use {path}: other users may read it; {remedy}, and replace it if one of"
                " them may have read it"
            )
        here = step
    raise NotOurs(f"cannot use {path}: its symbolic links form a loop")


def check_tree(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Raise NotOurs if another user can change ``folder`` or anything in it.

    Skip the folders in it whose names are in ``leave_out``.
    """
    check_path(folder)

    def fail(failure: OSError) -> None:
        if not isinstance(failure, _OUT_OF_REACH):
            raise failure

    for above, folders, files in os.walk(folder, onerror=fail):
        for path in (Path(above, name) for name in (*folders, *files)):
            if path.is_symlink():
                check_path(path)
            else:
                _refuse(path, path.lstat(), folder)
        folders[:] = [name for name in folders if name not in leave_out]


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and those above it, for this user only, where they do not exist.

    Raises OSError, and NotOurs where another user could change the folder, before or after.
    """
    check_path(path, private=private)
    # One by one: mkdir(parents=True) would give those above the permissions of the umask.
    for folder in (*reversed(path.absolute().parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)
    check_path(path, private=private)


def refuse_root(state_dir: Path) -> None:
    """Raise NotOurs for a root who would work on another user's state directory.

    Its owner could change what root runs, and could not use what root makes there.
    """
    try:
        found = state_dir.stat()
    except OSError:
        return  # It is to be made, or using it fails with the reason.
    if os.geteuid() != 0 or found.st_uid == 0:
        return
    user = str(found.st_uid)
    become = f"setpriv --reuid {user} --regid {found.st_gid} --clear-groups"
    with suppress(KeyError):  # In a container, a user may have no name.
        user = pwd.getpwuid(found.st_uid).pw_name
        become = f"runuser -u {user} --"
    words = sys.argv if os.access(sys.argv[0], os.X_OK) else sys.orig_argv
    if str(state_dir) not in words:
        words = [*words, "--state-dir", str(state_dir)]
    raise NotOurs(
        f"cannot run as root: {state_dir} belongs to user {user}; run this as that user:"
        f" `{become} {shlex.join(words)}`"
    )


def take_back(folder: Path, *, private: bool = False) -> int:
    """Take from the group the right to write to this user's own folder; return to how many files.

    Container platforms give it to the group of a volume at each start of a pod (Kubernetes does for
    ``fsGroup``). Only where the group is this process's and has no other member: nobody can have
    used it. With ``private``, take every right. Raise nothing.
    """
    taken = stat.S_IRWXG if private else stat.S_IWGRP
    if _take(folder, taken):
        return 1 + sum(_take(path, taken) for path in folder.rglob("*"))
    return 0


def _take(path: Path, taken: int) -> bool:
    with suppress(OSError):  # It is gone, or using it fails with the reason.
        found = path.lstat()
        ours = found.st_uid == os.geteuid() and _only_we_write(path, found)
        plain = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
        if ours and plain and found.st_mode & stat.S_IWGRP:
            # Not by its path, which somebody may have made a link since.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~taken)
            finally:
                os.close(descriptor)
            return True
    return False


def _refuse(
    step: Path, found: os.stat_result, path: Path, *, above: bool = False, private: bool = False
) -> None:
    """Raise NotOurs if ``step`` has another owner, or others may write to it.

    The content of a link, and of a sticky folder ``above``, is its owner's alone.
    """
    me, mode = os.geteuid(), found.st_mode
    foreign = found.st_uid not in (me, 0)
    protected = stat.S_ISLNK(mode) or (above and mode & stat.S_ISVTX)
    written = not _only_we_write(step, found) or (private and mode & stat.S_IWGRP)
    if not foreign and (protected or not written):
        return
    inside = step.is_relative_to(path.absolute())
    it = "it" if step == path.absolute() else str(step)
    what = f"other users may write to {it}, and so change what runs here"
    remedy = f"`chmod {f'-R go-w {_quoted(path)}' if inside else f'go-w {_quoted(step)}'}`"
    if foreign:
        what = f"{it} belongs to user {found.st_uid}, who could change what runs here"
        remedy = "choose a place where every folder above is yours or root's"
        remedy = f"`chown -R {me} {_quoted(path)}`" if inside else remedy
        remedy += ", or run as that user"
    raise NotOurs(f"cannot use {path}: {what}; {remedy}")


def _only_we_write(path: Path, found: os.stat_result) -> bool:
    writers = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writers != stat.S_IWGRP:
        return not writers
    # The mode shows what an access list allows to others as a right of the group.
    return _nobody_else_in(found.st_gid, os.geteuid()) and not _has_access_list(path)


@lru_cache(maxsize=64)
def _nobody_else_in(gid: int, user: int) -> bool:
    """Whether this process is in a group that has no other member on this machine."""
    if gid not in (os.getegid(), *os.getgroups()):
        return False
    users = pwd.getpwall()
    members = {one.pw_name for one in users if one.pw_gid == gid}
    with suppress(KeyError):  # The group has no name, as in containers.
        members |= set(grp.getgrgid(gid).gr_mem)
    return members <= {one.pw_name for one in users if one.pw_uid in (user, 0)}


def _has_access_list(path: Path) -> bool:
    with suppress(OSError):  # The file system has no access lists.
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    return False


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
