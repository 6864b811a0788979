"""Where a module comes from: a path, bytes, or a digest; and the digests of files."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.errors import ModuleTooLarge
from wasmkiln.shared import MAX_MODULE_BYTES, identity, is_digest, is_racy
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE

if TYPE_CHECKING:
    from wasmkiln.v1.types_pb2 import Kind

Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# A module's first eight bytes: magic number, version, and layer, which marks a component.
_PREAMBLES = {
    b"\0asm\x01\0\0\0": KIND_CORE_MODULE,
    b"\0asm\x0d\0\x01\0": KIND_COMPONENT,
}
_READ_BYTES = 64 * 1024  # Python takes fresh pages from the system for more than twice of that
_REMEMBERED = 4096
# The SHA-256 and the first bytes of files, as this process has read them.
_lock = threading.Lock()
_digests: dict[tuple[int, ...], tuple[str, bytes]] = {}


def kind_of(module: bytes) -> Kind | None:
    """Return the kind in a module's preamble. Return None for an unknown one."""
    return _PREAMBLES.get(module[:8])


def identify(source: Source) -> tuple[str, bytes | None, Kind | None, int | None]:
    """Return a module's digest, kind and size, and its bytes where they are at hand.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name. Read and
    hash a file only if this process has not yet done so since the file's device, inode, size or
    times changed. Raise OSError when a path cannot be read, ModuleTooLarge above 1 GiB, which no
    daemon accepts, and TypeError for another kind of source.
    """
    if isinstance(source, str) and is_digest(source) and not os.access(source, os.F_OK):
        return source, None, None, None
    if isinstance(source, (str, os.PathLike)):
        status = os.stat(source)  # noqa: PTH116  pathlib takes as long as all the rest.
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_MODULE_BYTES:
            with open(source, "rb", buffering=0) as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                sha256, start = file_digest(file.fileno(), status)
            return sha256, None, kind_of(start), status.st_size
        module = _read(Path(source))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        module = bytes(source)
    else:
        raise TypeError(
            f"a module is a path, bytes or a SHA-256 digest, not {type(source).__name__}"
        )
    return hashlib.sha256(module).hexdigest(), module, kind_of(module), len(module)


def _read(path: Path) -> bytes:
    """Read a file or a pipe. Stop at 1 GiB: /dev/zero has no end."""
    with path.open("rb") as file:
        size_bytes, module = os.fstat(file.fileno()).st_size, b""
        if size_bytes <= MAX_MODULE_BYTES:
            module = file.read(MAX_MODULE_BYTES + 1)
    if max(size_bytes, len(module)) > MAX_MODULE_BYTES:
        raise ModuleTooLarge(
            f"{path} is larger than {MAX_MODULE_BYTES:,} bytes, the highest limit of any daemon"
        )
    return module


def file_digest(
    descriptor: int, status: os.stat_result, *, again: bool = False
) -> tuple[str, bytes]:
    """Return the SHA-256 of an open file, and its first eight bytes. Raise OSError.

    Unless `again`, read a file only if its device, inode, size or times are new to this process.
    """
    key = identity(status)
    if not again and (known := _digests.get(key)):
        return known
    digest = hashlib.sha256()
    for offset in range(0, status.st_size, _READ_BYTES):
        digest.update(os.pread(descriptor, min(_READ_BYTES, status.st_size - offset), offset))
    found = digest.hexdigest(), os.pread(descriptor, 8, 0)
    if not is_racy(status) and identity(os.fstat(descriptor)) == key:
        with _lock:
            _digests[key] = found
            while len(_digests) > _REMEMBERED:
                del _digests[next(iter(_digests))]
    return found
