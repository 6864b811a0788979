"""Read and write the files of the key directory: whole or not at all, and no file of others."""

from __future__ import annotations

import contextlib
import os
import secrets
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


def read_file(path: Path, *, secret: bool = False) -> str | None:
    """Return a key file's text, None if there is none.

    Bytes that are not text are replaced, and the parser then rejects them.
    """
    try:
        check_path(path, private=True, secret=secret)
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def write_file(path: Path, content: bytes) -> None:
    """Write a file aside and rename it there, so that readers see all of it or none."""
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
