"""One module to warm: its name, its digest, and how to get its bytes."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln._requests import MAX_MODULE_BYTES, identify
from wasmkiln.cli.warming.unusable import SourceUnusable

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False)
class Module:
    """A module to warm. `read` returns its bytes, checked; None where only the digest is known."""

    name: str
    sha256: str
    read: Callable[[], bytes] | None = None
    # What the source says; None where it is not known before the bytes are read.
    size_bytes: int | None = None
    # Held by the thread that uploads it, so that several engines need one upload.
    uploading: threading.Lock = field(default_factory=threading.Lock)


def from_file(name: str) -> Module:
    """Return the module in a file. Raise OSError or ModuleTooLarge."""
    sha256 = identify(Path(name)).sha256
    return Module(name, sha256, partial(_read_again, name, sha256))


def checked(content: bytes, sha256: str, what: str) -> bytes:
    """Return the content. Raise SourceUnusable unless it has this SHA-256."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SourceUnusable(f"{what} has the SHA-256 {found}, not {sha256} as its source says")
    return content


def too_large(what: str, size_bytes: int, limit_bytes: int = MAX_MODULE_BYTES) -> SourceUnusable:
    """Return the error for what is not read, because it is too large."""
    return SourceUnusable(f"{what} has {size_bytes:,} bytes: at most {limit_bytes:,} are read")


def _read_again(name: str, sha256: str) -> bytes:
    now = identify(Path(name))
    if now.sha256 != sha256 or now.module is None:
        raise SourceUnusable(f"{name} changed meanwhile: warm it again")
    return now.module
