"""Small files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_BYTES = 1024 * 1024

Stamp = tuple[int, ...]


def stamp_of(path: str) -> Stamp:
    """Return what changes when a file does. Raise OSError."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_small(path: str) -> bytes:
    """Return a file's bytes. Raise OSError, and ValueError above 1 MiB."""
    with Path(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"cannot use {path}: it is larger than 1 MiB")
    return data
