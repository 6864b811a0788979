"""Digests of modules in files that did not change since they were hashed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from wasmkiln._header_fields import kind_of
from wasmkiln._requests import MAX_MODULE_BYTES, IdentifiedModule, identify, is_digest
from wasmkiln.host_store import file_digest

if TYPE_CHECKING:
    from wasmkiln._requests import Source
    from wasmkiln.v1.types_pb2 import Kind


def identify_once(source: Source) -> tuple[IdentifiedModule, Kind | None]:
    """Return a module's digest and kind, and its bytes where they were at hand anyway.

    Read and hash a file only if this process has not yet done so since the file's device, inode,
    size or times changed. Raise as `identify`.
    """
    if isinstance(source, (str, os.PathLike)):
        try:
            status = os.stat(source)  # noqa: PTH116  pathlib takes as long as all the rest.
        except (OSError, ValueError):
            if isinstance(source, str) and is_digest(source):
                return IdentifiedModule(source, None), None
        else:
            if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_MODULE_BYTES:
                with open(source, "rb", buffering=0) as file:  # noqa: PTH123
                    sha256, start = file_digest(file.fileno(), os.fstat(file.fileno()))
                return IdentifiedModule(sha256, None), kind_of(start)
    identified = identify(source)
    return identified, kind_of(identified.module)
