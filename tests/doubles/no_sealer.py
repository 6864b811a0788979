"""A sealer for tests that have nothing to do with keys."""

from __future__ import annotations

from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey, Refusal


class NoSealer:
    """Signs nothing and accepts everything."""

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` as it is."""
        return artifact

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Find nothing wrong."""
        return None

    def certificate_of(self, artifact: Artifact) -> bytes:
        """Return none."""
        return b""

    def stamp(self, message: bytes) -> bytes:
        """Return an empty stamp."""
        return bytes(STAMP_BYTES)

    def check_stamp_now(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Find nothing wrong."""
        return None

    def outdated(self, artifact: Artifact, stamped_by: str = "") -> Refusal | None:
        """Find nothing wrong."""
        return None

    def wants_certificate(self, key_id: str) -> bool:
        """Want none."""
        return False

    def learn_certificate(self, chain: bytes) -> None:
        """Learn nothing."""

    def is_retired(self, artifact: Artifact) -> bool:
        """Find nothing wrong."""
        return False

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Find nothing wrong."""
        return None
