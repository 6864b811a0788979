"""Sealers with keys of their own, for tests of signing and of tiers."""

from __future__ import annotations

from wasmkiln.attestation import TrustedKeys
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer

MADE_S = 1_700_000_000.0
"""When the artifacts of tests are made, whatever the time is."""

OURS, THEIRS = PrivateKey.generate(), PrivateKey.generate()


def sealer(signing: PrivateKey = OURS, *trusted: PrivateKey) -> Sealer:
    """A sealer that signs with ``signing`` and trusts it, and ``trusted`` too."""
    keys = Keys(signing, TrustedKeys(key.public for key in (signing, *trusted)))
    return Sealer(keys, "0.0.test", now=lambda: MADE_S)
