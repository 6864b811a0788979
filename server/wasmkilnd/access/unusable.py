"""Read the files that say who may do what, and the error for those that cannot be used."""

from __future__ import annotations

import os
import stat
import traceback
from pathlib import Path

from wasmkilnd.ownership import NotOurs, check_path

# Thousands of rules, tokens or keys.
_MOST_BYTES = 4 * 1024 * 1024


class AccessUnusable(Exception):  # noqa: N818 - says what the files are
    """The daemon cannot use what says who may do what. The message never holds a secret."""


def defect_in(failure: Exception) -> str:
    """Return what nobody foresaw and where, without its message: it may hold a file's content."""
    place = traceback.extract_tb(failure.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"a defect of the daemon ({type(failure).__name__} in {where})"


def read(what: str, path: Path, *, secret: bool = False) -> bytes:
    """Return a file's content; ``what`` says what the file is. Raises AccessUnusable.

    Whoever can change the file decides who may do what: so refuse it if another user can. With
    ``secret``, refuse it if another user can read it. Raises FileNotFoundError.
    """
    try:
        check_path(path, private=secret, secret=secret)
        # Without O_NONBLOCK a pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise AccessUnusable(f"cannot use {what} {path}: it is not a file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(_MOST_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except NotOurs as refusal:
        raise AccessUnusable(str(refusal)) from None
    except OSError as failure:
        raise AccessUnusable(f"cannot use {what} {path}: {failure.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise AccessUnusable(f"cannot use {what} {path}: it is larger than 4 MiB")
    return content
