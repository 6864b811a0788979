"""Writing a file so that nobody reads half of it."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file next to `path` and renames it there, with the mode that the umask gives.

    What is there and is no regular file, such as /dev/null or a pipe, is written to instead:
    renaming would replace it. Raises OSError, and then leaves nothing behind.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    # A link stays, and what it points to is replaced.
    target = path.resolve()
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    # O_EXCL: never through a link that somebody put there first.
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as failure:  # Under a name that its caller knows.
        raise OSError(failure.errno, failure.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
