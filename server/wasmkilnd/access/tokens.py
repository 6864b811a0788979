"""Bearer tokens of this daemon: what they look like, and how the daemon knows them again.

A token is ``wk_<id>_<secret>``: 12 hexadecimal digits that name it, and 48 that nobody can guess
(192 bits). The daemon keeps its SHA-256 alone: the secret is random, so that no slower hash is
needed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wasmkilnd.access.unusable import AccessUnusable, read
from wasmkilnd.model import NAMESPACE_NAME, Role

PREFIX = "wk_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Names of tokens."""
MOST_TOKENS = 10_000

_TOKEN = re.compile(r"wk_([0-9a-f]{12})_[0-9a-f]{48}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the daemon keeps it: without its secret."""

    id: str
    name: str
    roles: frozenset[Role]
    namespace: str
    sha256: str = field(repr=False)
    created_s: int
    """Seconds since 1970, as all times here."""
    expires_s: int | None = None
    """None for never."""

    def expired(self, now_s: float) -> bool:
        """Return whether it counts no more."""
        return self.expires_s is not None and now_s >= self.expires_s


def new_token(
    name: str, roles: Iterable[Role], namespace: str, now_s: int, expires_s: int | None
) -> tuple[str, Token]:
    """Return the text of a new token, and what the daemon keeps of it."""
    token_id = secrets.token_hex(6)
    text = f"{PREFIX}{token_id}_{secrets.token_hex(24)}"
    kept = Token(token_id, name, frozenset(roles), namespace, _digest(text), now_s, expires_s)
    return text, kept


class Tokens:
    """The tokens that the daemon knows."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self.all = tokens
        self._by_id: Mapping[str, Token] = {token.id: token for token in tokens}

    def find(self, text: str) -> Token | None:
        """Return the token that ``text`` is, also if it has expired; None for an unknown one."""
        shape = _TOKEN.fullmatch(text)
        token = self._by_id.get(shape[1]) if shape else None
        if token is None or not hmac.compare_digest(token.sha256, _digest(text)):
            return None
        return token


def read_tokens(path: Path) -> Tokens | None:
    """Return the tokens of a file, None if there is none. Raises AccessUnusable."""
    try:
        content = read("tokens file", path, secret=True)
    except FileNotFoundError:
        return None
    try:
        found = _File.model_validate_json(content)
    except ValidationError as error:
        [first, *_] = error.errors(include_input=False, include_url=False)
        where = ".".join(str(step) for step in first["loc"])
        # From None: the cause holds the file's content.
        raise AccessUnusable(
            f"cannot use tokens file {path}: {where + ': ' if where else ''}{first['msg']}; put"
            " back a copy, or delete it and make the tokens again"
        ) from None
    return Tokens([row.token() for row in found.tokens])


def as_file(tokens: Iterable[Token]) -> bytes:
    """Return the content of a tokens file."""
    rows: list[dict[str, Any]] = [
        {
            "id": token.id,
            "name": token.name,
            "roles": sorted(role.value for role in token.roles),
            "namespace": token.namespace,
            "sha256": token.sha256,
            "created": token.created_s,
            "expires": token.expires_s,
        }
        for token in tokens
    ]
    return json.dumps({"version": 1, "tokens": rows}, indent=1).encode() + b"\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_Name: TypeAlias = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
_Namespace: TypeAlias = Annotated[str, StringConstraints(pattern=f"^({NAMESPACE_NAME.pattern})?$")]
_Hex: TypeAlias = Annotated[str, StringConstraints(pattern="^[0-9a-f]+$", max_length=64)]
_Time: TypeAlias = Annotated[int, Field(ge=0, le=2**40)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    id: _Hex
    name: _Name
    roles: list[Role]
    namespace: _Namespace
    sha256: _Hex
    created: _Time
    expires: _Time | None

    def token(self) -> Token:
        return Token(
            self.id,
            self.name,
            frozenset(self.roles),
            self.namespace,
            self.sha256,
            self.created,
            self.expires,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    version: Literal[1]
    tokens: Annotated[list[_Row], Field(max_length=MOST_TOKENS)]
