"""The keys that a daemon trusts at one moment, and the one that it signs with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog
from wasmkiln.certificates import CodeSigningCAs, expiry_of
from wasmkiln.revoked_keys import shown, strictest
from wasmkiln.trusted_keys import PublicKey, TrustedKeys

from wasmkilnd.signing.certified import CertifiedKeys, read_own
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.private import PrivateKey
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
        self.certified_until_s = expiry_of(self.certificate) if self.certificate else None
        """When the certificate of the signing key expires; None for a key without one."""

    def certificate_of(self, key_id: str) -> bytes:
        """Return the certificate of a key with its chain, empty if none is known."""
        if key_id == self.signing.public.id and self.certificate:
            return self.certificate
        return self.certified.chain_of(key_id)
