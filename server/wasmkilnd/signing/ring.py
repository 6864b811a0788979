"""The keys of a running daemon, and the sealer that follows them as reloads change them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from wasmkiln.certificates import CodeSigningCAs
from wasmkiln.revoked_keys import changed, shown, strictest
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.config.schema import Settings
from wasmkilnd.signing.certified import CertifiedKeys, read_cas, read_own
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.sealer import DsseSealer
from wasmkilnd.signing.store import KeyStore

log = structlog.get_logger("wasmkilnd.keys")


class TrustRing:
    """The keys that the daemon trusts. Safe for use from any thread.

    It looks for an unknown key in the key directory again: another daemon of the fleet may have
    rotated its key since this one started, and this one must not delete its values as a
    stranger's.
    """

    def __init__(
        self, given: Iterable[PublicKey], store: KeyStore, cas: CodeSigningCAs | None = None
    ) -> None:
        """Trust the keys that are ``given`` or in ``store``, and those that ``cas`` vouch for."""
        self._store = store
        stored = store.trusted()
        self._trusted = {key.id: key for key in (*given, *stored.values())}
        self.certified = CertifiedKeys(cas)
        self._learn(stored.certificates)
        self.revoked: Mapping[str, int] = store.revoked()
        self._unsaved: Mapping[str, int] = {}

    @property
    def trusted(self) -> TrustedKeys:
        """All trusted keys that are known so far."""
        return TrustedKeys([*self._trusted.values(), *self.certified.keys])

    def add(self, given: TrustedKeys) -> None:
        """Honour the revocations and certificates that came with keys."""
        self.revoked = strictest(self.revoked, given.revoked)
        self._learn(given.certificates)

    def _learn(self, chains: Iterable[bytes]) -> None:
        for chain in chains:
            if why := self.certified.learn(chain):
                log.warning("certificate of a signing key not accepted", cause=why)

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
        """Keep what ``before`` learned and the key directory has not.

        These are revocations that it could not keep there, and certificates.
        """
        self._unsaved = before._unsaved
        self.revoked = strictest(self.revoked, self._unsaved)
        for chain in before.certified.chains:
            self.certified.learn(chain)

    def get(self, key_id: str, /) -> PublicKey | None:
        """Return the trusted key with this id, None if there is none."""
        key = self._trusted.get(key_id) or self.certified.get(key_id)
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

    def __init__(
        self,
        signing: PrivateKey,
        trusted: TrustedKeys,
        store: KeyStore,
        cas: CodeSigningCAs | None = None,
        cert_file: str = "",
    ) -> None:
        """``cert_file`` has the certificate of the signing key. Raises KeysUnusable."""
        super().__init__((signing.public, *trusted.values()), store, cas)
        self.signing = signing
        self.certificate = read_own(cert_file, signing.public, cas)

    def certificate_of(self, key_id: str) -> bytes:
        """Return the certificate of a key with its chain, empty if none is known."""
        if key_id == self.signing.public.id and self.certificate:
            return self.certificate
        return self.certified.chain_of(key_id)


def open_trust(
    folder: Path, signing_key: str, trusted_keys: Sequence[str], ca_file: str = ""
) -> TrustRing:
    """Open the keys that a daemon with these settings trusts; make none. Raises KeysUnusable."""
    store = KeyStore(folder)
    signing = _parsed(signing_key) if signing_key else store.signing_key()
    own = (signing.public,) if signing else ()
    trusted = _read(trusted_keys)
    ring = TrustRing((*own, *trusted.values()), store, read_cas(ca_file))
    ring.add(trusted)
    return ring


def open_ring(
    folder: Path,
    signing_key: str,
    trusted_keys: Sequence[str],
    ca_file: str = "",
    cert_file: str = "",
) -> KeyRing:
    """Open the keys that a daemon's settings name. Raises KeysUnusable.

    Without ``signing_key``, the key directory holds the signing key; the first start makes it.
    """
    store = KeyStore(folder)
    trusted = _read(trusted_keys)
    signing = _parsed(signing_key) if signing_key else store.ensure()
    ring = KeyRing(signing, trusted, store, read_cas(ca_file), cert_file)
    ring.add(trusted)
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
        settings.trusted_ca_file,
        settings.signing_cert_file,
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
    revoked = changed(old.ring.revoked, new.ring.revoked)
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
