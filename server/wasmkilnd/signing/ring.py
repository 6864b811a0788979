"""The keys of a running daemon, and the sealer that follows them as reloads change them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from wasmkiln.revoked_keys import shown, strictest
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.config.schema import Settings
from wasmkilnd.model import Artifact, CacheKey, Refusal
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.sealer import DsseSealer
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
        self.revoked: Mapping[str, int] = store.revoked()
        self._unsaved: Mapping[str, int] = {}

    @property
    def trusted(self) -> TrustedKeys:
        """All trusted keys that are known so far."""
        return TrustedKeys(self._trusted.values())

    def revoke(self, found: Mapping[str, int]) -> Mapping[str, int]:
        """Refuse what the keys in ``found`` signed from the times there on; return what is new.

        Keep it in the key directory. May block; never raises.
        """
        new = {
            key_id: since_ms
            for key_id, since_ms in found.items()
            if since_ms < self.revoked.get(key_id, since_ms + 1)
        }
        self.revoked = strictest(self.revoked, new)
        for key_id, since_ms in new.items():
            log.warning("key revoked", key_id=key_id, when=shown(since_ms))
            try:
                self._store.revoke(key_id, since_ms)
            except KeysUnusable as failure:
                self._unsaved = strictest(self._unsaved, {key_id: since_ms})
                log.warning(
                    "cannot keep a revocation: it counts until this daemon restarts",
                    key_id=key_id,
                    cause=str(failure),
                )
        return new

    def read_revoked(self) -> Mapping[str, int]:
        """Return what the key directory revokes by now. May block. Raises KeysUnusable."""
        return self._store.revoked()

    def take_over(self, before: TrustRing) -> None:
        """Go on refusing what ``before`` learned and could not keep in the key directory."""
        self._unsaved = before._unsaved
        self.revoked = strictest(self.revoked, self._unsaved)

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
    trusted = _read(trusted_keys)
    ring = TrustRing((*own, *trusted.values()), store)
    ring.revoked = strictest(ring.revoked, trusted.revoked)
    return ring


def open_ring(folder: Path, signing_key: str, trusted_keys: Sequence[str]) -> KeyRing:
    """Open the keys that a daemon's settings name. Raises KeysUnusable.

    Without ``signing_key``, the key directory holds the signing key; the first start makes it.
    """
    store = KeyStore(folder)
    trusted = _read(trusted_keys)
    ring = KeyRing(_parsed(signing_key) if signing_key else store.ensure(), trusted, store)
    ring.revoked = strictest(ring.revoked, trusted.revoked)
    return ring


@dataclass(frozen=True, slots=True)
class Signing:
    """The keys at one moment, and the sealer that signs with them."""

    ring: KeyRing
    sealer: DsseSealer


def open_signing(settings: Settings, daemon_version: str) -> Signing:
    """Open the keys that ``settings`` name. May block. Raises KeysUnusable."""
    ring = open_ring(
        settings.effective_keys_dir,
        settings.signing_key.get_secret_value(),
        settings.trusted_keys,
    )
    own = ring.signing.public.id
    if time.time() * 1000 >= ring.revoked.get(own, math.inf):
        raise KeysUnusable(
            f"cannot sign with {own}: this key is revoked; make another with `wasmkilnd keys"
            " rotate`, or change WASMKILN_SIGNING_KEY"
        )
    sealer = DsseSealer(
        ring.signing.signer(), ring, daemon_version, max_age_s=settings.value_max_age_s
    )
    return Signing(ring, sealer)


class CurrentSealer:
    """Implements the Sealer port with the current keys."""

    def __init__(
        self, signing: Reloadable[Signing], evicted_ms: Callable[[str, str], int] = lambda *_: 0
    ) -> None:
        """Seal with the current keys.

        ``evicted_ms`` returns the time up to which artifacts of a module and an engine are
        evicted. An artifact that is sealed now gets a later time, whatever the clock says.
        """
        self._signing = signing
        self._evicted_ms = evicted_ms

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` with its attestation."""
        evicted_ms = self._evicted_ms(artifact.module_sha256, artifact.spec.engine.id)
        return self._signing.current.sealer.seal(artifact, evicted_ms)

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return why no trusted key vouches for ``artifact`` under ``key``, None if one does."""
        return self._signing.current.sealer.verify(artifact, key)

    def stamp(self, message: bytes) -> bytes:
        """Return the signing key's id and its signature of ``message``."""
        return self._signing.current.sealer.stamp(message)

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return why no trusted key vouches for ``message``, None if one does."""
        return self._signing.current.sealer.check_stamp(message, stamp)

    def check_stamp_now(self, message: bytes, stamp: bytes) -> Refusal | None:
        """As ``check_stamp``, for what names no time."""
        return self._signing.current.sealer.check_stamp_now(message, stamp)

    def outdated(self, artifact: Artifact, stamped_by: str = "") -> Refusal | None:
        """Return why time has passed over ``artifact``, None if it has not."""
        return self._signing.current.sealer.outdated(artifact, stamped_by)

    def is_retired(self, artifact: Artifact) -> bool:
        """Return whether the key of ``artifact`` is revoked since later than it was made."""
        return self._signing.current.sealer.is_retired(artifact)


def log_keys(signing: Signing) -> None:
    """Log the keys that a daemon starts with."""
    ring = signing.ring
    log.info("signing artifacts", key_id=ring.signing.public.id, trusted_keys=len(ring.trusted))


def log_key_changes(old: Signing, new: Signing) -> bool:
    """Log a line for each key that differs; return whether one does."""
    before, after = old.ring.signing.public.id, new.ring.signing.public.id
    if before != after:
        log.info("signing key changed", old=before, new=after)
    gained = [key for key in new.ring.trusted if key not in old.ring.trusted]
    lost = [key for key in old.ring.trusted if key not in new.ring.trusted]
    for key_id in gained:
        log.info("key added", key_id=key_id)
    for key_id in lost:
        log.warning("key no longer trusted", key_id=key_id)
    revoked = {
        key_id: since_ms
        for key_id, since_ms in new.ring.revoked.items()
        if old.ring.revoked.get(key_id) != since_ms
    }
    for key_id, since_ms in revoked.items():
        log.warning("key revoked", key_id=key_id, when=shown(since_ms))
    ages = old.sealer.max_age_s != new.sealer.max_age_s
    return bool(before != after or gained or lost or revoked or ages)


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
