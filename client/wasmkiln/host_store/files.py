"""Open folders and files of the store, and decide by their descriptors whether they count.

A folder or file counts only if

- its owner is root, this process's user, or the owner of the store's directory; the last one
  only if no folder above the store can be changed by anybody but root and that owner
- its group and others cannot write to it
- a file is a regular one with one name: a hard link may be another user's file, and would stay
  when the daemon evicts the entry
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wasmkiln.host_store.refused import Refused

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = _READ | os.O_DIRECTORY
_FILE = _READ | os.O_NONBLOCK  # a pipe in place of a file must not make the caller wait
_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Owners:
    """Whose files count."""

    users: frozenset[int]

    @classmethod
    def of(cls, directory: str, status: os.stat_result) -> Owners:
        """Return who may own files of the store at `directory`, whose status is given."""
        users = {0, os.geteuid()}
        owner = status.st_uid
        if owner not in users and _only_root_or(owner, Path(directory).resolve(), status):
            users.add(owner)
        return cls(frozenset(users))

    def check(self, status: os.stat_result, what: str) -> None:
        """Raise Refused unless what `status` describes has such an owner, who alone can write."""
        if status.st_uid not in self.users:
            raise Refused(f"{what} belongs to the user {status.st_uid}, who is not trusted")
        if status.st_mode & _SHARED_WRITE:
            raise Refused(f"users other than the owner can write to {what}")


def _only_root_or(owner: int, directory: Path, status: os.stat_result) -> bool:
    """Return whether nobody but root and `owner` can put another folder into this one's place."""
    if not os.path.samestat(os.stat(directory), status):  # noqa: PTH116
        return False
    for folder in directory.parents:
        status = os.stat(folder)  # noqa: PTH116  The path has no links.
        # A sticky folder does not help: anybody could have made the store in it.
        if status.st_uid not in (0, owner) or status.st_mode & _SHARED_WRITE:
            return False
    return True


def open_folder(name: str, owners: Owners, parent: int) -> int:
    """Return a folder's descriptor. Raise Refused unless it counts."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot open the folder {name}: {error}") from error
    try:
        owners.check(os.fstat(descriptor), f"the folder {name}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class OpenStore:
    """The store's own folder, and who may own what lies in it. Close it."""

    def __init__(self, directory: str) -> None:
        """Raise Refused. `directory` itself may be a link; what lies in the store may not."""
        try:
            self.descriptor = os.open(directory, _FOLDER & ~os.O_NOFOLLOW)
        except (OSError, ValueError) as error:
            raise Refused(f"cannot open a host store at {directory}: {error}") from error
        try:
            status = os.fstat(self.descriptor)
            self.owners = Owners.of(directory, status)
            self.owners.check(status, f"the folder {directory}")
        except OSError as error:
            self.close()
            raise Refused(f"cannot look at {directory}: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder."""
        os.close(self.descriptor)

    def __enter__(self) -> OpenStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(name: str, owners: Owners, parent: int) -> tuple[int, os.stat_result]:
    """Return a file's descriptor and status. Raise Refused unless it counts."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=parent)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot open the file {name}: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{name} is not a regular file")
        if status.st_nlink != 1:
            raise Refused(f"{name} has {status.st_nlink} names")
        owners.check(status, f"the file {name}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_file(name: str, owners: Owners, parent: int, max_bytes: int) -> bytes:
    """Return a small file's content. Raise Refused unless it counts and has `max_bytes` at most."""
    descriptor, status = open_file(name, owners, parent)
    try:
        if status.st_size > max_bytes:
            raise Refused(f"{name} has more than {max_bytes:,} bytes")
        return read_all(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def read_all(descriptor: int, size_bytes: int) -> bytes:
    """Return a file's bytes. Raise Refused unless there are as many as its status said."""
    try:
        content = os.pread(descriptor, size_bytes + 1, 0)
        while 0 < len(content) < size_bytes:  # one read returns 2 GiB at most
            more = os.pread(descriptor, size_bytes + 1 - len(content), len(content))
            if not more:
                break
            content += more
    except OSError as error:
        raise Refused(f"cannot read a file of the store: {error}") from error
    if len(content) != size_bytes:
        raise Refused("a file changed while it was read")
    return content


def copy_in_memory(descriptor: int, size_bytes: int) -> int:
    """Return the descriptor of a copy that only this process has, to map. Raise Refused."""
    done = 0
    try:
        copy = os.memfd_create("wasmkiln")
    except (AttributeError, OSError) as error:  # only Linux has it
        raise Refused(f"cannot copy a file of the store into memory: {error}") from error
    with suppress(OSError):
        while count := os.sendfile(copy, descriptor, done, size_bytes + 1 - done):
            done += count
    if done != size_bytes:
        os.close(copy)
        raise Refused("a file cannot be read, or changed while it was read")
    return copy
