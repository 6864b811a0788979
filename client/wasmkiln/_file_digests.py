"""Digests of modules in files that did not change since they were hashed."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from wasmkiln._header_fields import kind_of
from wasmkiln._requests import MAX_MODULE_BYTES, IdentifiedModule, identify, is_digest
from wasmkiln.host_store.checks import identity, is_racy

if TYPE_CHECKING:
    from wasmkiln._requests import Source
    from wasmkiln.v1.types_pb2 import Kind

_REMEMBERED = 4096
_READ_BYTES = 256 * 1024

_lock = threading.Lock()
_digests: OrderedDict[tuple[int, ...], tuple[str, Kind | None]] = OrderedDict()


def identify_once(source: Source) -> tuple[IdentifiedModule, Kind | None]:
    """Return a module's digest and kind, and its bytes where they were at hand anyway.

    Read and hash a file only if this process has not yet done so since the file's device, inode,
    size or times changed. Raise as `identify`.
    """
    if isinstance(source, (str, os.PathLike)) and not isinstance(source, bytes):
        try:
            status = os.stat(source)  # noqa: PTH116
        except (OSError, ValueError):
            status = None
        if status is not None and stat.S_ISREG(status.st_mode):
            known = _known(status)
            return known if known is not None else _hashed(source)
        if status is None and isinstance(source, str) and is_digest(source):
            return IdentifiedModule(source, None), None
    identified = identify(source)
    return identified, kind_of(identified.module)


def _known(status: os.stat_result) -> tuple[IdentifiedModule, Kind | None] | None:
    key = identity(status)
    with _lock:
        found = _digests.get(key)
        if found is None:
            return None
        _digests.move_to_end(key)
    return IdentifiedModule(found[0], None), found[1]


def _hashed(path: str | os.PathLike[str]) -> tuple[IdentifiedModule, Kind | None]:
    digest = hashlib.sha256()
    # Unbuffered, into one buffer: the digest is all that is needed of most files.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        if status.st_size > MAX_MODULE_BYTES:
            return identify(path), None  # raises
        buffer = memoryview(bytearray(min(_READ_BYTES, status.st_size + 1)))
        start, size_bytes = b"", 0
        while count := file.readinto(buffer):
            start = start or bytes(buffer[:8])
            size_bytes += count
            if size_bytes > MAX_MODULE_BYTES:
                return identify(path), None
            digest.update(buffer[:count])
        unchanged = identity(os.fstat(file.fileno())) == identity(status)
    found = digest.hexdigest(), kind_of(start)
    if unchanged and not is_racy(status):
        with _lock:
            _digests[identity(status)] = found
            while len(_digests) > _REMEMBERED:
                _digests.popitem(last=False)
    return IdentifiedModule(found[0], None), found[1]
