"""A sealer for tests that have nothing to do with keys."""

from __future__ import annotations

from wasmkiln.attestation import TrustedKeys
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey, Refusal
from wasmkilnd.signing.keys import Keys
from wasmkilnd.signing.sealer import Sealer


class NoSealer(Sealer):
    """Signs nothing and accepts everything."""

    def __init__(self) -> None:
        super().__init__(Keys(None, TrustedKeys()))

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` as it is."""
        return artifact

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Find nothing wrong."""
        return None

    def stamp(self, message: bytes) -> bytes:
        """Return an empty stamp."""
        return bytes(STAMP_BYTES)

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Find nothing wrong."""
        return None
