"""Read the files of the key directory, and no file that another user owns or may change."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from wasmkilnd.ownership import NotOurs, check_path


class KeysUnusable(Exception):  # noqa: N818 - a state, shown to the operator
    """The daemon cannot use its keys. The message says why and what to do, and holds no secret."""


@contextlib.contextmanager
def as_keys_unusable(path: Path) -> Iterator[None]:
    """Raise KeysUnusable for the errors of the file system."""
    try:
        yield
    except NotOurs as refusal:
        raise KeysUnusable(str(refusal)) from None
    except OSError as error:
        raise KeysUnusable(f"{error.filename or path}: {error.strerror}") from None


def refuse_open_folder(folder: Path) -> None:
    """Raise NotOurs if another user could add files to a folder of keys, or replace some."""
    with contextlib.suppress(OSError):
        found = folder.stat()
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if found.st_uid == 0 and others and found.st_mode & stat.S_ISVTX:
            raise NotOurs(
                f"cannot use {folder} as the directory of keys: other users may add files to it,"
                " as to a mounted Secret; leave keys_dir out, and hand over its key in"
                " WASMKILN_SIGNING_KEY, and other keys in WASMKILN_TRUSTED_KEYS"
            )
    check_path(folder, private=True)


def read_file(path: Path, *, secret: bool = False) -> str | None:
    """Return a key file's text, None if there is none.

    Bytes that are not text are replaced, and the parser then rejects them.
    """
    try:
        check_path(path, private=True, secret=secret)
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
