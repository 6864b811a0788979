"""The signing keys that a CA vouches for, and their certificates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from wasmkiln.certificates import MAX_CHAIN_BYTES, CertifiedKey, CodeSigningCAs, key_of
from wasmkiln.trusted_keys import PublicKey

from wasmkilnd.ownership import NotOurs, check_path
from wasmkilnd.signing.files import KeysUnusable

log = structlog.get_logger("wasmkilnd.keys")

# Certificates may come from Redis: many may be there if the CA signed many.
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class _Known:
    key: PublicKey
    until_s: float
    chain: bytes


class CertifiedKeys:
    """The keys for which valid certificates are known. Safe for use from any thread."""

    def __init__(
        self, cas: CodeSigningCAs | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Without ``cas``, no certificate makes a key trusted. ``clock`` is the time of day."""
        self._cas = cas
        self.on = bool(cas)
        """Whether certificates make keys trusted."""
        self._clock = clock
        self._known: dict[str, _Known] = {}

    @property
    def chains(self) -> list[bytes]:
        """The certificates that are known, each with its chain."""
        return [known.chain for known in self._known.values()]

    @property
    def keys(self) -> list[PublicKey]:
        """The keys of all certificates that are known, expired ones too until ``drop_expired``."""
        return [known.key for known in list(self._known.values())]

    def learn(self, chain: bytes) -> str:
        """Trust the key of a certificate; return why it is not trusted, empty if it is."""
        if not self._cas or len(self._known) >= _MAX_KEYS:
            return "there are no trusted CAs" if not self._cas else "there are too many"
        try:
            certified: CertifiedKey = self._cas.certified(chain, self._clock())
        except ValueError as why:
            return str(why)
        key = PublicKey(certified.raw)
        if key.id not in self._known:
            log.info("key certified", key_id=key.id)
        self._known[key.id] = _Known(key, certified.until_s, chain)
        return ""

    def get(self, key_id: str) -> PublicKey | None:
        """Return the key with this id while its certificate is valid."""
        known = self._known.get(key_id)
        return known.key if known and self._clock() < known.until_s else None

    def chain_of(self, key_id: str) -> bytes:
        """Return the certificate of a key, with its chain; empty if none is known."""
        known = self._known.get(key_id)
        return known.chain if known else b""

    def drop_expired(self) -> bool:
        """Forget the certificates that have expired; return whether there were any."""
        now_s = self._clock()
        expired = [key_id for key_id, known in list(self._known.items()) if known.until_s <= now_s]
        for key_id in expired:
            del self._known[key_id]
            log.warning("key no longer trusted: its certificate has expired", key_id=key_id)
        return bool(expired)


def read_cas(path: str) -> CodeSigningCAs | None:
    """Return the CAs in the file, None for no path. Raises KeysUnusable."""
    if not path:
        return None
    try:
        check_path(Path(path))
        cas = CodeSigningCAs(_read(path))
    except NotOurs as refusal:
        raise KeysUnusable(f"{refusal} (trusted_ca_file)") from None
    except ValueError as error:
        raise KeysUnusable(f"cannot use trusted_ca_file {path}: {error}") from None
    if not cas:
        raise KeysUnusable(f"cannot use trusted_ca_file {path}: there is no CA's certificate in it")
    return cas


def read_own(path: str, key: PublicKey, cas: CodeSigningCAs | None) -> bytes:
    """Return the certificate of the signing key, empty for no path. Raises KeysUnusable."""
    if not path:
        return b""
    try:
        chain = _read(path)
        if key_of(chain) != key.raw:
            raise ValueError(f"it is of another key than {key.id}, with which this daemon signs")
        if cas:
            cas.certified(chain)
    except ValueError as error:
        raise KeysUnusable(f"cannot use signing_cert_file {path}: {error}") from None
    return chain


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_CHAIN_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or "cannot read it") from None
