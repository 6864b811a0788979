"""The settings of the host store, and the modes and limits that follow from them."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from pathlib import Path

from wasmkiln.host_layout import namespace_path

BLOCK_BYTES = 4096
"""What the store counts for a folder, and the unit to which it rounds up the size of a file."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where the store is, how much it may hold, and who may read it."""

    directory: Path
    limit_bytes: int
    file_mode: int = 0o640
    """The mode of files. Only the owner may have the right to write."""
    group: int | None = None
    """The number of the group of files and folders; None for the daemon's own."""
    above: tuple[Path, ...] = ()
    """Folders on the way to the directory that get the mode and the group too, the first first."""

    def of_namespace(self, namespace: str, limit_bytes: int) -> HostOptions:
        """Return the options of the store of a namespace, which is a folder of this one."""
        directory = namespace_path(self.directory, namespace)
        above = (self.directory, directory.parent) if namespace else ()
        return replace(self, directory=directory, limit_bytes=limit_bytes, above=above)

    def __post_init__(self) -> None:
        # Callers get paths, and have another working directory.
        object.__setattr__(self, "directory", self.directory.absolute())
        if self.file_mode & ~0o666 or self.file_mode & _OTHERS_WRITE or self.file_mode < 0o400:
            raise ValueError(f"cannot use mode {self.file_mode:04o} for files of the host store")

    @property
    def folder_mode(self) -> int:
        """The mode of folders: whoever may read files may search folders, and the owner writes."""
        return self.file_mode | (self.file_mode & 0o444) >> 2 | stat.S_IRWXU


def on_disk(size_bytes: int) -> int:
    """Return what the store counts for a file of ``size_bytes``."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def least_on_disk(artifact_bytes: int) -> int:
    """Return what an entry with such an artifact takes at least: a folder and three files."""
    return 3 * BLOCK_BYTES + on_disk(artifact_bytes)
