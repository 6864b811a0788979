"""The keys of a running daemon: the one that it signs with, and those that it believes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.store import KeyStore, KeysUnusable

log = structlog.get_logger("wasmkilnd.keys")


class TrustRing:
    """The keys that are believed. Safe for use from any thread.

    A key that is not known is looked for in the key directory once more: another daemon of
    the fleet may have rotated since this one started, and its values must not be taken for a
    stranger's and deleted.
    """

    def __init__(self, given: Iterable[PublicKey], store: KeyStore) -> None:
        self._store = store
        self._trusted = {key.id: key for key in (*given, *store.trusted().values())}

    @property
    def trusted(self) -> TrustedKeys:
        """All that are known to be trusted by now."""
        return TrustedKeys(self._trusted.values())

    def get(self, key_id: str, /) -> PublicKey | None:
        """Return the trusted key with this id, None if there is none."""
        key = self._trusted.get(key_id)
        if key is None:
            try:
                key = self._store.find(key_id)
            except KeysUnusable as failure:
                log.warning("a trusted key cannot be read", cause=str(failure))
            if key:
                self._trusted[key_id] = key
                log.info("a key was added", key_id=key_id)
        return key


class KeyRing(TrustRing):
    """The keys that are believed, and the one to sign with."""

    def __init__(self, signing: PrivateKey, trusted: TrustedKeys, store: KeyStore) -> None:
        super().__init__((signing.public, *trusted.values()), store)
        self.signing = signing


def open_trust(folder: Path, signing_key: str, trusted_keys: Sequence[str]) -> TrustRing:
    """Open the keys that a daemon with these settings believes; make none. Raises KeysUnusable."""
    store = KeyStore(folder)
    signing = _parsed(signing_key) if signing_key else store.signing_key()
    own = (signing.public,) if signing else ()
    return TrustRing((*own, *_read(trusted_keys).values()), store)


def open_ring(folder: Path, signing_key: str, trusted_keys: Sequence[str]) -> KeyRing:
    """Open a daemon's keys as its settings say. Raises KeysUnusable.

    Without ``signing_key``, the key directory's is used, and made at first start.
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
            f"WASMKILN_TRUSTED_KEYS: {error.filename} cannot be read: {error.strerror}"
        ) from None


def _parsed(signing_key: str) -> PrivateKey:
    try:
        return PrivateKey.parse(signing_key)
    except ValueError as error:
        raise KeysUnusable(f"WASMKILN_SIGNING_KEY: {error}") from None
