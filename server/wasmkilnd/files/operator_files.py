"""Read the files that settings name, such as tokens, keys and advisories, within bounds."""

from __future__ import annotations

import os
import stat
import traceback
from pathlib import Path

from wasmkilnd import errors
from wasmkilnd.files.ownership import NotOurs, check_path

CannotUse = errors.CannotUse
# Thousands of rules, tokens or keys.
_MOST_BYTES = 4 * 1024 * 1024


class NoSuchFile(CannotUse):
    """There is no such file."""


def defect_in(failure: Exception) -> str:
    """Return what nobody foresaw and where, without its message: it may hold a file's content."""
    place = traceback.extract_tb(failure.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"a defect of the daemon ({type(failure).__name__} in {where})"


def read(
    what: str, path: Path, *, secret: bool = False, ours: bool = True, closed: bool = False
) -> bytes:
    """Return a file's content; ``what`` says what the file is. Raises CannotUse.

    Where whoever can change the file decides who may do what, it must be ``ours``: refuse it if
    another user can change it. With ``secret``, refuse it if another user can read it, and if
    ``closed``, if users outside its group can.
    """
    try:
        if ours:
            check_path(path, private=secret, secret=secret)
        with open(path, "rb", opener=_open) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise CannotUse(f"cannot use {what} {path}: it is not a file")
            if closed and mode & stat.S_IRWXO:
                why = f"other users may read it; run `chmod o= {path}`"
                raise CannotUse(f"cannot use {what} {path}: {why}")
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise NoSuchFile(f"cannot use {what} {path}: there is no such file") from None
    except NotOurs as refusal:
        raise CannotUse(f"{refusal} ({what})") from None
    except OSError as failure:
        raise CannotUse(f"cannot use {what} {path}: {failure.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise CannotUse(f"cannot use {what} {path}: it is larger than 4 MiB")
    return content


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # A pipe would block.
