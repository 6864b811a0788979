"""The sealer by the keys in force, and what opening them anew changes."""

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
    """What the settings and the key directory come to, at one moment."""

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
    """The Sealer port: whatever sealer is in force."""

    def __init__(
        self, signing: Reloadable[Signing], evicted_ms: Callable[[str, str], int] = lambda *_: 0
    ) -> None:
        """``evicted_ms`` returns up to when artifacts of a module and an engine were evicted:
        those that are sealed now are later, whatever the clock says.
        """
        self._signing = signing
        self._evicted_ms = evicted_ms

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` with its attestation."""
        evicted_ms = self._evicted_ms(artifact.module_sha256, artifact.spec.engine.id)
        return self._signing.current.sealer.seal(artifact, evicted_ms)

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return why nobody vouches for ``artifact`` under ``key``, None if somebody does."""
        return self._signing.current.sealer.verify(artifact, key)

    def stamp(self, message: bytes) -> bytes:
        """Return a signature that says by whom ``message`` was written."""
        return self._signing.current.sealer.stamp(message)

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return why nobody vouches for ``message``, None if somebody does."""
        return self._signing.current.sealer.check_stamp(message, stamp)


def log_keys(signing: Signing) -> None:
    """Log the keys that a daemon starts with."""
    ring = signing.ring
    log.info("signing artifacts", key_id=ring.signing.public.id, trusted_keys=len(ring.trusted))


def log_key_changes(old: Signing, new: Signing) -> bool:
    """Log what differs, a line for each key; return whether anything does."""
    before, after = old.ring.signing.public.id, new.ring.signing.public.id
    if before != after:
        log.info("signing key changed", old=before, new=after)
    gained = [key for key in new.ring.trusted if key not in old.ring.trusted]
    lost = [key for key in old.ring.trusted if key not in new.ring.trusted]
    for key_id in gained:
        log.info("a key was added", key_id=key_id)
    for key_id in lost:
        log.warning("a key is not trusted any more", key_id=key_id)
    return bool(before != after or gained or lost)
