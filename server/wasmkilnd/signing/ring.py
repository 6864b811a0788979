"""The keys of a running daemon: the one that it signs with, and those that it trusts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.store import KeyStore, KeysUnusable

log = structlog.get_logger("wasmkilnd.keys")


class TrustRing:
    """The keys that the daemon trusts. Safe for use from any thread.

    It looks for an unknown key in the key directory again: another daemon of the fleet may have
    rotated its key since this one started, and this one must not delete its values as a
    stranger's.
    """

    def __init__(self, given: Iterable[PublicKey], store: KeyStore) -> None:
        self._store = store
        self._trusted = {key.id: key for key in (*given, *store.trusted().values())}

    @property
    def trusted(self) -> TrustedKeys:
        """All trusted keys that are known so far."""
        return TrustedKeys(self._trusted.values())

    def get(self, key_id: str, /) -> PublicKey | None:
        """Return the trusted key with this id, None if there is none."""
        key = self._trusted.get(key_id)
        if key is None:
            try:
                key = self._store.find(key_id)
            except KeysUnusable as failure:
                log.warning("cannot read a trusted key", cause=str(failure))
            if key:
                self._trusted[key_id] = key
                log.info("key added", key_id=key_id)
        return key


class KeyRing(TrustRing):
    """The trusted keys, and the one to sign with."""

    def __init__(self, signing: PrivateKey, trusted: TrustedKeys, store: KeyStore) -> None:
        super().__init__((signing.public, *trusted.values()), store)
        self.signing = signing


def open_trust(folder: Path, signing_key: str, trusted_keys: Sequence[str]) -> TrustRing:
    """Open the keys that a daemon with these settings trusts; make none. Raises KeysUnusable."""
    store = KeyStore(folder)
    signing = _parsed(signing_key) if signing_key else store.signing_key()
    own = (signing.public,) if signing else ()
    return TrustRing((*own, *_read(trusted_keys).values()), store)


def open_ring(folder: Path, signing_key: str, trusted_keys: Sequence[str]) -> KeyRing:
    """Open the keys that a daemon's settings name. Raises KeysUnusable.

    Without ``signing_key``, the key directory holds the signing key; the first start makes it.
    """
    store = KeyStore(folder)
    trusted = _read(trusted_keys)
    return KeyRing(_parsed(signing_key) if signing_key else store.ensure(), trusted, store)


def _read(trusted_keys: Sequence[str]) -> TrustedKeys:
    try:
        return TrustedKeys.read(trusted_keys)
    except ValueError as error:
        raise KeysUnusable(f"WASMKILN_TRUSTED_KEYS: {error}") from None
    except OSError as error:
        raise KeysUnusable(
            f"WASMKILN_TRUSTED_KEYS: cannot read {error.filename}: {error.strerror}"
        ) from None


def _parsed(signing_key: str) -> PrivateKey:
    try:
        return PrivateKey.parse(signing_key)
    except ValueError as error:
        raise KeysUnusable(f"WASMKILN_SIGNING_KEY: {error}") from None
