"""Open the keys that settings name, and tell how they differ from those before."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from wasmkiln.revoked_keys import changed, shown
from wasmkiln.trusted_keys import TrustedKeys

from wasmkilnd.config.schema import Settings
from wasmkilnd.signing.certified import read_cas
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.ring import KeyRing, TrustRing
from wasmkilnd.signing.sealer import DsseSealer
from wasmkilnd.signing.store import KeyStore

log = structlog.get_logger("wasmkilnd.keys")


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
