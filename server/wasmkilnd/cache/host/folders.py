"""Open, make and check the folders of the store; nothing below its directory follows a link.

Only this process's user may own a folder or file of the store, and no other user may write to it:
what a group or a stranger can change is rejected as ``foreign``.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import stat
from pathlib import Path

from wasmkilnd.cache.host.options import HostOptions
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey
from wasmkilnd.ownership import NotOurs, check_path, make_folder, take_back

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_FOLDER = (errno.ELOOP, errno.ENOTDIR)


def steps(key: CacheKey) -> tuple[str, str, str]:
    """Return the names of the folders that lead from the directory to an entry."""
    return key.fingerprint, key.module_sha256[:2], key.module_sha256


def check_ours(found: os.stat_result, name: str) -> None:
    """Raise ValueRejected unless only this process's user owns and may write ``name``."""
    if found.st_uid != os.geteuid():
        raise ValueRejected(Cause.FOREIGN, f"{name} belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise ValueRejected(Cause.FOREIGN, f"other users may write to {name} (mode {mode:04o})")


def prepare(options: HostOptions) -> None:
    """Make the directory if it is missing, with its mode and group. Raises TierUnavailable."""
    for directory in (*options.above, options.directory):
        _prepare(directory, options)


def _prepare(directory: Path, options: HostOptions) -> None:
    take_back(directory)
    try:
        make_folder(directory)
    except NotOurs as failure:
        raise TierUnavailable(str(failure)) from None
    except OSError as failure:
        raise _unusable(directory, failure) from None
    descriptor = open_root(directory)
    try:
        admit(descriptor, options.folder_mode, options.group)
    except PermissionError as failure:
        if options.group is None:
            raise _unusable(directory, failure) from None
        raise cannot(
            f"give {directory} to the group {_group_name(options.group)} of host_store_group, which"
            " the daemon's user must be in",
            failure,
        ) from None
    except OSError as failure:
        raise _unusable(directory, failure) from None
    finally:
        os.close(descriptor)


def open_root(directory: Path) -> int:
    """Open the directory. Raises TierUnavailable if it is gone, or another user can change it."""
    try:
        descriptor = os.open(directory, _FOLDER)
    except OSError as failure:
        raise _unusable(directory, failure) from None
    try:
        check_ours(os.fstat(descriptor), str(directory))
    except ValueRejected as rejected:
        os.close(descriptor)
        refuse_foreign(directory)  # It says what to do.
        why = f"the host store refuses its directory: {rejected.why}"
        if os.access(directory, os.W_OK):  # As a volume is whose group the daemon is in.
            why += f"; use a folder in it, which the daemon makes: {directory / 'artifacts'}"
        raise TierUnavailable(why) from None
    return descriptor


def refuse_foreign(directory: Path) -> None:
    """Raise TierUnavailable if another user can change what ``directory`` leads to."""
    try:
        check_path(directory)
    except NotOurs as failure:
        raise TierUnavailable(str(failure)) from None


def open_entry(directory: Path, key: CacheKey) -> int | None:
    """Open the folder of an entry; return None if there is none.

    Raises ValueRejected if a folder on the way is a link or not ours, and TierUnavailable.
    """
    here = open_root(directory)
    for name in steps(key):
        try:
            there = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
        except FileNotFoundError:
            return None
        except OSError as failure:
            if failure.errno in _NO_FOLDER:
                raise ValueRejected(Cause.FOREIGN, f"{name} is not a folder") from None
            raise cannot("open a folder", failure) from None
        finally:
            os.close(here)
        here = there
        try:
            check_ours(os.fstat(here), name)
        except ValueRejected:
            os.close(here)
            raise
    return here


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` still leads to the open file or folder."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def make_way(options: HostOptions, key: CacheKey) -> Path:
    """Make the folders above an entry where they are missing; return where the entry belongs.

    Raises OSError, and ValueRejected if one of them is not ours.
    """
    path = options.directory
    for name in steps(key)[:-1]:
        path /= name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            descriptor = os.open(path, _FOLDER | os.O_NOFOLLOW)
            try:
                admit(descriptor, options.folder_mode, options.group)
            finally:
                os.close(descriptor)
            continue
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ValueRejected(Cause.FOREIGN, f"{name} is not a folder")
        check_ours(found, name)
    return path / key.module_sha256


def first_wrong_step(directory: Path, key: CacheKey) -> Path:
    """Return the first folder on the way to an entry that is no folder of ours, else the entry."""
    path = directory
    for name in steps(key):
        path /= name
        try:
            found = path.lstat()
            check_ours(found, name)
        except (OSError, ValueRejected):
            return path
        if not stat.S_ISDIR(found.st_mode):
            return path
    return path


def prune(directory: Path, key: CacheKey) -> None:
    """Remove the folders above an entry that are empty; never raises."""
    fingerprint, start, _ = steps(key)
    with contextlib.suppress(OSError):
        (directory / fingerprint / start).rmdir()
        (directory / fingerprint).rmdir()


def admit(descriptor: int, mode: int, group: int | None) -> None:
    """Give an open file or folder its mode and group. Raises OSError."""
    found = os.fstat(descriptor)
    if group is not None and found.st_gid != group:
        os.fchown(descriptor, -1, group)
    if stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(descriptor, mode)


def _unusable(directory: Path, failure: OSError) -> TierUnavailable:
    """Return what to raise because of ``failure``; it names the folder that is in the way."""
    code = errno.ENOTDIR if failure.errno == errno.EEXIST else failure.errno
    why = os.strerror(code) if code else str(failure)
    if code != errno.ENOENT:
        why += f": {next(filter(_is_there, (directory, *directory.parents)), directory)}"
    return TierUnavailable(f"the host store cannot use its directory {directory}: {why}")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def cannot(do: str, failure: OSError) -> TierUnavailable:
    """Return what a tier raises because of ``failure``."""
    return TierUnavailable(f"the host store cannot {do}: {failure.strerror or failure}")
