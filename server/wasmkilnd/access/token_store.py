"""Make and revoke tokens: changes of the tokens file.

::

    <state_dir>/access/              0700
    <state_dir>/access/tokens.json   0600  written whole and renamed
    <state_dir>/access/.lock         0600  held by the process that changes something

A running daemon reads the file again when it changes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wasmkilnd.access.tokens import (
    MOST_TOKENS,
    NAME,
    Token,
    Tokens,
    as_file,
    new_token,
    read_tokens,
)
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.model import NAMESPACE_NAME, Role
from wasmkilnd.ownership import NotOurs, make_folder
from wasmkilnd.whole_files import locked, write_whole


class TokenStore:
    """The tokens file. Safe for use by several processes; every method may block."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def tokens(self) -> Sequence[Token]:
        """Return all tokens, the oldest first. Raises AccessUnusable."""
        return (read_tokens(self.file) or Tokens()).all

    def add(
        self, name: str, roles: Iterable[Role], namespace: str, lifetime_s: float | None
    ) -> tuple[str, Token]:
        """Make a token; return its text, which is kept nowhere. Raises AccessUnusable.

        Several tokens may have one name: so one can replace another without a gap.
        """
        if not NAME.fullmatch(name):
            raise AccessUnusable(
                f"cannot name a token {name[:100]!r}: write 1 to 63 letters, digits or any of . _ -"
            )
        if namespace and not NAMESPACE_NAME.fullmatch(namespace):
            raise AccessUnusable(
                f"cannot use the namespace {namespace[:100]!r}: write 1 to 63 lowercase letters,"
                " digits or hyphens"
            )
        now_s = int(time.time())
        expires_s = None if lifetime_s is None else now_s + max(1, int(lifetime_s))
        text, token = new_token(name, roles, namespace, now_s, expires_s)
        with self._changing() as tokens:
            if len(tokens) >= MOST_TOKENS:
                raise AccessUnusable(
                    f"cannot make a token: there are {MOST_TOKENS:,} already; revoke some"
                )
            tokens.append(token)
        return text, token

    def revoke(self, name_or_id: str) -> Sequence[Token]:
        """Forget the token of this id, or all of this name; return them. Raises AccessUnusable."""
        with self._changing() as tokens:
            gone = [token for token in tokens if name_or_id in (token.id, token.name)]
            if not gone:
                raise AccessUnusable(
                    f"cannot revoke {name_or_id[:100]!r}: no token has this name or id;"
                    " `wasmkilnd token ls` shows them"
                )
            tokens[:] = [token for token in tokens if token not in gone]
        return gone

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        try:
            make_folder(self.file.parent, private=True)
            with locked(self.file.parent):
                tokens = list(self.tokens())
                yield tokens
                # A file without tokens stays: without it, the daemon would let everybody in.
                write_whole(self.file, as_file(tokens))
        except NotOurs as refusal:
            raise AccessUnusable(str(refusal)) from None
        except OSError as failure:
            where = failure.filename or self.file
            raise AccessUnusable(f"cannot change {where}: {failure.strerror}") from None
