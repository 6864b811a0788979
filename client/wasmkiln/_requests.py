"""Where a module comes from: a path, bytes, or a digest."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wasmkiln.errors import ModuleTooLarge

Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# The highest limit that a daemon can be configured to have. A larger file is not read.
MAX_MODULE_BYTES = 1024**3


@dataclass(frozen=True)
class IdentifiedModule:
    """A module's SHA-256 in lowercase hex, and its bytes (None where only the digest is known)."""

    sha256: str
    module: bytes | None


def is_digest(text: str) -> bool:
    """Return whether a text is 64 lowercase hexadecimal digits."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def identify(source: Source) -> IdentifiedModule:
    """Read and hash a module. Take a digest as it is.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name. Raise
    OSError when a path cannot be read, ModuleTooLarge above 1 GiB, which no daemon accepts,
    and TypeError for another kind of source.
    """
    if isinstance(source, str) and is_digest(source) and not Path(source).exists():
        return IdentifiedModule(source, None)
    if isinstance(source, (bytes, bytearray, memoryview)):
        module = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        module = _read(Path(source))
    else:
        raise TypeError(
            f"a module is a path, bytes or a SHA-256 digest, not {type(source).__name__}"
        )
    return IdentifiedModule(hashlib.sha256(module).hexdigest(), module)


def _read(path: Path) -> bytes:
    """Read a file or a pipe. Stop at 1 GiB: /dev/zero has no end."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        module = file.read(MAX_MODULE_BYTES + 1) if size_bytes <= MAX_MODULE_BYTES else b""
    if size_bytes > MAX_MODULE_BYTES or len(module) > MAX_MODULE_BYTES:
        raise ModuleTooLarge(
            f"{path} is larger than {MAX_MODULE_BYTES:,} bytes, the highest limit of any daemon"
        )
    return module
