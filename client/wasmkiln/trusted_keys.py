"""Public keys: which daemons a caller trusts, and the forms in which a key may be given.

An Ed25519 public key is 32 bytes, and its id is the SHA-256 of these, which every language
can compute. Reading keys needs the standard library only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.revoked_keys import FOLDER, read_revocations

if TYPE_CHECKING:
    KeySource = str | os.PathLike[str]

ENV = "WASMKILN_TRUSTED_KEYS"

_KEY_BYTES = 32
# The start of every Ed25519 public key in PEM (RFC 8410); the key follows.
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes

    @property
    def id(self) -> str:
        """The SHA-256 of the key's 32 bytes, in lowercase hex: an envelope's keyid."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def hex(self) -> str:
        """The key as 64 hexadecimal digits."""
        return self.raw.hex()

    @property
    def pem(self) -> str:
        """The key as PEM, as openssl writes it."""
        body = base64.b64encode(_SPKI_PREFIX + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read hex, base64 or PEM. Raise ValueError."""
        text = text.strip()
        if pem := _PEM.fullmatch(text):
            der = _base64("".join(pem[1].split()))
            if len(der) == len(_SPKI_PREFIX) + _KEY_BYTES and der.startswith(_SPKI_PREFIX):
                return cls(der[len(_SPKI_PREFIX) :])
        elif _HEX.fullmatch(text):
            return cls(bytes.fromhex(text))
        elif len(raw := _base64(text)) == _KEY_BYTES:
            return cls(raw)
        # The message does not quote the text: it may be a private key, pasted by mistake.
        raise ValueError(
            "not an Ed25519 public key: expected 64 hex digits, base64 of 32 bytes, or PEM"
        )


class TrustedKeys(Mapping[str, PublicKey]):
    """The public keys that a caller trusts, by their ids, but for those in `revoked`. Immutable."""

    def __init__(self, keys: Iterable[PublicKey] = (), revoked: Iterable[str] = ()) -> None:
        """Trust `keys`; refuse whatever a key signed whose id is in `revoked`."""
        self._keys = {key.id: key for key in keys}
        self.revoked = frozenset(revoked)

    @classmethod
    def read(cls, sources: KeySource | Iterable[KeySource]) -> TrustedKeys:
        """Read the keys of one or more sources.

        A source is a key (hex, base64 or PEM), a file with PEM blocks or one key a line, a
        folder of `*.pem` files, or several of these separated by commas. With a folder, the
        revocations in `revoked/` count too, which is in it or, where it is called `trusted`,
        beside it: so it is in a daemon's key directory. Raise ValueError when a source is none
        of these, and OSError when a file cannot be read.
        """
        if isinstance(sources, (str, os.PathLike)):
            sources = [sources]
        revoked = set[str]()
        return cls([key for source in sources for key in _from_source(source, revoked)], revoked)

    @classmethod
    def choose(cls, argument: TrustedKeys | KeySource | Iterable[KeySource] | None) -> TrustedKeys:
        """Return `argument`, else the keys of WASMKILN_TRUSTED_KEYS, else none. Raise as `read`."""
        if isinstance(argument, TrustedKeys):
            return argument
        if argument is None:
            return cls.read(os.environ.get(ENV, ""))
        chosen = cls.read(argument)
        if not chosen:
            # With no key nothing would be checked, and a caller who passes a list wants a check.
            raise ValueError("trusted_keys has no key in it: leave it out to check nothing")
        return chosen

    def __getitem__(self, key_id: str) -> PublicKey:
        return self._keys[key_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"TrustedKeys({', '.join(key_id[:12] for key_id in self._keys)})"


def _from_source(source: KeySource, revoked: set[str]) -> Iterator[PublicKey]:
    if isinstance(source, os.PathLike):
        yield from _from_path(Path(source), revoked)
        return
    for part in source.split(","):
        text = part.strip()
        if not text:
            continue
        try:
            yield PublicKey.parse(text)
        except ValueError:
            if "\n" in text or not Path(text).expanduser().exists():
                raise ValueError(
                    "a trusted key is 64 hex digits, base64 of 32 bytes, PEM, or the path of a"
                    " file or folder that exists"
                ) from None
            yield from _from_path(Path(text).expanduser(), revoked)


def _from_path(path: Path, revoked: set[str]) -> Iterator[PublicKey]:
    if path.is_dir():
        beside = (path.parent,) if path.name == "trusted" else ()
        for each in (path, *beside):
            revoked |= read_revocations(each / FOLDER)
        for file in sorted(path.glob("*.pem")):
            yield from _from_path(file, revoked)
        return
    try:
        text = path.read_text()
        blocks = [block[0] for block in _PEM.finditer(text)]
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        keys = [PublicKey.parse(each) for each in blocks or lines]
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(
            f"cannot read {path}: expected Ed25519 public keys in hex, base64 or PEM, and no"
            " certificates"
        ) from error
    if not keys:
        raise ValueError(f"cannot read {path}: there is no key in it")
    yield from keys


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
