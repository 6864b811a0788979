"""Sealers with keys of their own, for tests of signing and of tiers."""

from __future__ import annotations

from wasmkiln.trusted_keys import TrustedKeys
from wasmkilnd.keys.private import PrivateKey
from wasmkilnd.seal import DsseSealer

OURS, THEIRS = PrivateKey.generate(), PrivateKey.generate()


def sealer(signing: PrivateKey = OURS, *trusted: PrivateKey) -> DsseSealer:
    """A sealer that signs with ``signing`` and trusts it, and ``trusted`` too."""
    keys = TrustedKeys(key.public for key in (signing, *trusted))
    return DsseSealer(signing.signer(), keys, "0.0.test", now=lambda: 1_700_000_000.0)
