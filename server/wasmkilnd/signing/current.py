"""The sealer that the whole daemon uses: it follows the keys as reloads change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from wasmkilnd.config.schema import Settings
from wasmkilnd.model import Artifact, CacheKey, Refusal
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.ring import KeyRing, open_ring
from wasmkilnd.signing.sealer import DsseSealer

log = structlog.get_logger("wasmkilnd.keys")


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
    return Signing(ring, DsseSealer(ring.signing.signer(), ring, daemon_version))


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
    return bool(before != after or gained or lost)
