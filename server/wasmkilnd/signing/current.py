"""The sealer of a running daemon: it follows the keys as reloads change them."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from wasmkilnd.model import Artifact, CacheKey, Refusal
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.opening import Signing
from wasmkilnd.signing.sealer import attested

log = structlog.get_logger("wasmkilnd.keys")


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
        """Return why ``artifact`` counts no more, None if it does."""
        return self._signing.current.sealer.outdated(artifact, stamped_by)

    def wants_certificate(self, key_id: str) -> bool:
        """Return whether a certificate may make this key, which is not trusted, trusted."""
        ring = self._signing.current.ring
        return ring.certified.on and ring.get(key_id) is None

    def learn_certificate(self, chain: bytes) -> None:
        """Trust the key of a certificate if a trusted CA issued it."""
        if why := self._signing.current.ring.certified.learn(chain):
            log.debug("certificate of a signing key not accepted", cause=why)

    def certificate_of(self, artifact: Artifact) -> bytes:
        """Return the certificate of the key that signed ``artifact``, empty if none is known."""
        ring = self._signing.current.ring
        if not (ring.certificate or ring.certified.on):
            return b""
        return ring.certificate_of(attested(artifact.attestation)[0])

    def is_retired(self, artifact: Artifact) -> bool:
        """Return whether the key of ``artifact`` was revoked after it was made."""
        return self._signing.current.sealer.is_retired(artifact)
