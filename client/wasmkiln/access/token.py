"""The token that says who calls. Its text appears in no message, repr or log."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.access.files import read_small, stamp_of

if TYPE_CHECKING:
    from wasmkiln.access.files import Stamp

Metadata = tuple[tuple[str, str], ...]

_log = logging.getLogger("wasmkiln")

# gRPC servers refuse metadata above 8 KiB in all.
_MAX_BYTES = 7 * 1024


class Token:
    """A token given as text."""

    def __init__(self, text: str, what: str = "the token") -> None:
        if not isinstance(text, str):
            raise TypeError("the token has to be a str")
        self._metadata = _as_metadata(text, what)

    def metadata(self) -> Metadata:
        """Return the metadata that carries it."""
        return self._metadata

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class TokenFile(Token):
    """A token in a file, which is read again when it changes.

    A file that cannot be read any more, or has no token in it, leaves the last one in force.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = str(Path(path).expanduser())
        self._stamp: Stamp = stamp_of(self._path)
        super().__init__(self._read(), f"the token in {self._path}")
        _warn_of_readers(self._path)

    def metadata(self) -> Metadata:
        """Return the metadata that carries the file's token."""
        try:
            stamp = stamp_of(self._path)
            if stamp != self._stamp:
                # First, so that a file which changes meanwhile is read once more.
                self._stamp = stamp
                self._metadata = _as_metadata(self._read(), f"the token in {self._path}")
        except (OSError, ValueError) as why:
            _log.debug("the last token is used on: %s", why)
        return self._metadata

    def _read(self) -> str:
        return read_small(self._path).decode("ascii", "replace")


def _as_metadata(text: str, what: str) -> Metadata:
    """Return the metadata. Raise ValueError, which does not quote the text."""
    token = text.strip()
    if token.lower().startswith("bearer "):
        token = token[7:].strip()
    if not token:
        raise ValueError(f"cannot use {what}: it is empty")
    if len(token) > _MAX_BYTES or not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"cannot use {what}: expected one token of at most {_MAX_BYTES:,} visible ASCII "
            "characters, and nothing else"
        )
    return (("authorization", f"Bearer {token}"),)


def _warn_of_readers(path: str) -> None:
    """Log a warning where other users can read the file, and this one can change that."""
    status = Path(path).stat()
    if status.st_mode & stat.S_IROTH and status.st_uid == os.geteuid():
        _log.warning("every user of this machine can read the token in %s: chmod 600 it", path)
