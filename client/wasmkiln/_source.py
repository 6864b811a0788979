"""What a caller may name a module by: a path, its bytes, or its digest."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Source = str | os.PathLike[str] | bytes | bytearray | memoryview

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IdentifiedModule:
    """A module's SHA-256 in lowercase hex, and its bytes unless only the digest is known."""

    sha256: str
    module: bytes | None


def is_digest(text: str) -> bool:
    """Whether a text is 64 lowercase hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def identify(source: Source) -> IdentifiedModule:
    """Reads and hashes a module; a digest is taken at its word.

    A text of 64 lowercase hexadecimal digits is a digest, unless a file has that name.
    Raises OSError when a path can't be read, TypeError for another kind of source.
    """
    if isinstance(source, str) and is_digest(source) and not Path(source).exists():
        return IdentifiedModule(source, None)
    if isinstance(source, (bytes, bytearray, memoryview)):
        module = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        module = Path(source).read_bytes()
    else:
        raise TypeError(
            f"a module is a path, bytes or a SHA-256 digest, not {type(source).__name__}"
        )
    return IdentifiedModule(hashlib.sha256(module).hexdigest(), module)
