"""What a caller may name a module by: a path, its bytes, or its digest."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.errors import ModuleTooLarge

if TYPE_CHECKING:
    Source = str | os.PathLike[str] | bytes | bytearray | memoryview

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IdentifiedModule:
    """A module's SHA-256 in lowercase hex, and its bytes unless only the digest is known."""

    sha256: str
    module: bytes | None


# What a daemon can be configured to take at most; the file is not read to find out.
_MAX_MODULE_BYTES = 1024**3


def _read(path: Path) -> bytes:
    """Reads a file, or a pipe, but not one without an end such as /dev/zero."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        module = file.read(_MAX_MODULE_BYTES + 1) if size_bytes <= _MAX_MODULE_BYTES else b""
    if size_bytes > _MAX_MODULE_BYTES or len(module) > _MAX_MODULE_BYTES:
        raise ModuleTooLarge(
            f"{path} is larger than {_MAX_MODULE_BYTES:,} bytes, more than any daemon takes"
        )
    return module


def is_digest(text: str) -> bool:
    """Whether a text is 64 lowercase hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def identify(source: Source) -> IdentifiedModule:
    """Reads and hashes a module; a digest is taken at its word.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name.
    Raises OSError when a path can't be read, ModuleTooLarge for what no daemon would take,
    TypeError for another kind of source.
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
