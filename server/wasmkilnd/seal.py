"""Sealers: what vouches for an artifact that comes back from the shared tier."""

from __future__ import annotations

from wasmkilnd.model import Artifact, CacheKey


class NoSealer:
    """Signs nothing and vouches for everything: whoever writes to the shared tier is trusted.

    Digest, length and key of a value are checked all the same, by the tier.
    """

    def seal(self, artifact: Artifact) -> Artifact:
        """Answer ``artifact`` as it is."""
        return artifact

    def verify(self, artifact: Artifact, key: CacheKey) -> str:
        """Find nothing wrong."""
        return ""
