"""Bearer tokens: what they look like, how the daemon knows them again, their file.

A token is ``wk_<id>_<secret>``: 12 hexadecimal digits that name it, and 48 that nobody can guess
(192 bits). The daemon keeps its SHA-256 alone: the secret is random, so that no slower hash is
needed.

::

    <state_dir>/access/              0700
    <state_dir>/access/tokens.json   0600  written whole and renamed; or what tokens_file names
    <state_dir>/access/.lock         0600  held by the process that changes something

A running daemon reads the file again when it changes. Format: ``version`` 1; raise it for what an
older daemon must not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wasmkilnd.files.operator_files import CannotUse, NoSuchFile, read
from wasmkilnd.files.ownership import make_folder
from wasmkilnd.files.whole_files import locked, write_whole
from wasmkilnd.mistakes import sentences
from wasmkilnd.model import NAMESPACE_NAME, Role

PREFIX = "wk_"
_TOKEN = re.compile(r"wk_([0-9a-f]{12})_[0-9a-f]{48}")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)


class Token(_Model):
    """A token as the daemon keeps it: without its secret.

    - ``created``: seconds since 1970, as all times here.
    - ``expires``: None for never.
    """

    id: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    roles: frozenset[Role]
    namespace: Annotated[str, Field(pattern=f"^({NAMESPACE_NAME.pattern})?$")]
    sha256: Annotated[str, Field(repr=False)]
    created: int
    expires: int | None

    def expired(self, now_s: float) -> bool:
        """Return whether it counts no more."""
        return self.expires is not None and now_s >= self.expires


class Tokens(_Model):
    """The tokens that the daemon knows, the oldest first: the content of their file."""

    version: Literal[1] = 1
    all: list[Token] = Field(default=[], alias="tokens", max_length=10_000)

    @cached_property
    def _by_id(self) -> dict[str, Token]:
        return {token.id: token for token in self.all}

    def find(self, text: str) -> Token | None:
        """Return the token that ``text`` is, also if it has expired; None for an unknown one."""
        shape = _TOKEN.fullmatch(text)
        token = self._by_id.get(shape[1]) if shape else None
        return token if token and hmac.compare_digest(token.sha256, _digest(text)) else None


def new_token(
    name: str, roles: Iterable[Role], namespace: str, created: int, expires: int | None
) -> tuple[str, Token]:
    """Return the text of a new token, and what the daemon keeps of it."""
    token_id = secrets.token_hex(6)
    text = f"{PREFIX}{token_id}_{secrets.token_hex(24)}"
    about = {"id": token_id, "name": name, "roles": [*roles], "namespace": namespace}
    times = {"created": created, "expires": expires}
    return text, Token.model_validate({**about, **times, "sha256": _digest(text)})


def read_tokens(path: Path, *, required: bool = False) -> Tokens | None:
    """Return the tokens of a file; None if it is missing, unless it is required.

    Raises CannotUse.
    """
    try:
        return Tokens.model_validate_json(read("tokens file", path, secret=True))
    except NoSuchFile as missing:
        if not required:
            return None
        remedy = "put it there, or make its first token with `wasmkilnd token add`"
        raise CannotUse(f"{missing}; {remedy}") from None
    except ValidationError as error:
        # From None: the cause holds the file's content.
        raise CannotUse(
            f"cannot use tokens file {path}: {sentences(error)[0]}; put back a copy, or delete it"
            " and make the tokens again"
        ) from None


class TokenStore:
    """Makes and revokes tokens. Safe for use by several processes; every method may block.

    What changes tokens raises NotOurs where another user could change their folder.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def tokens(self) -> Sequence[Token]:
        """Return all tokens, the oldest first. Raises CannotUse."""
        return (read_tokens(self.file) or Tokens()).all

    def add(
        self, name: str, roles: Iterable[Role], namespace: str, lifetime_s: float | None
    ) -> tuple[str, Token]:
        """Make a token; return its text, which is kept nowhere. Raises CannotUse.

        Several tokens may have one name: so one can replace another without a gap.
        """
        now_s = int(time.time())
        expires = None if lifetime_s is None else now_s + max(1, int(lifetime_s))
        try:
            text, token = new_token(name, roles, namespace, now_s, expires)
            with self._changing() as tokens:
                tokens.append(token)
        except ValidationError as error:
            raise CannotUse(f"cannot make a token {name[:100]!r}: {sentences(error)[0]}") from None
        return text, token

    def revoke(self, name_or_id: str) -> Sequence[Token]:
        """Forget the token of this id, or all of this name; return them. Raises CannotUse."""
        with self._changing() as tokens:
            gone = [token for token in tokens if name_or_id in (token.id, token.name)]
            if not gone:
                raise CannotUse(
                    f"cannot revoke {name_or_id[:100]!r}: no token has this name or id;"
                    " `wasmkilnd token ls` shows them"
                )
            tokens[:] = [token for token in tokens if token not in gone]
        return gone

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        # Behind links: other daemons may read the file there, and no link would lead to it.
        file = Path(os.path.realpath(self.file))
        try:
            if os.access(file.parent, os.F_OK) and not os.access(file.parent, os.W_OK):
                raise CannotUse(
                    f"cannot change {self.file}: its folder is read-only for this user; change a"
                    " copy of the file with --tokens-file, and put the copy in its place"
                )
            make_folder(file.parent, private=True)
            with locked(file.parent):
                tokens = list(self.tokens())
                yield tokens
                # A file without tokens stays: without it, the daemon would let everybody in.
                write_whole(file, as_file(tokens))
        except OSError as failure:
            where = failure.filename or self.file
            raise CannotUse(f"cannot change {where}: {failure.strerror}") from None


def as_file(tokens: list[Token]) -> bytes:
    """Return the content of a tokens file."""
    return Tokens(tokens=tokens).model_dump_json(indent=1, by_alias=True).encode() + b"\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
