"""Writing a file so that nobody reads half of it."""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_aside(path: Path, content: bytes, *, follow_link: bool) -> None:
    """Writes a file next to `path` and renames it there, with the mode that the umask gives.

    With `follow_link`, for a path that a person gave: a link there stays, what it points to is
    replaced, and what is no regular file, such as /dev/null or a pipe, is written to. Without,
    for a name that was made up: a link is replaced, and what else is no regular file refused,
    so that nothing is written elsewhere. Raises OSError, and then leaves nothing behind.
    """
    if follow_link:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()
    else:
        if not path.is_symlink() and path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "there is something that is no file", str(path))
        target = path
    # Its length does not depend on that of `path`, which may be as long as a name can be.
    aside = target.with_name(f".{secrets.token_hex(12)}.tmp")
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
