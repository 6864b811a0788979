"""Who vouches for what a shared tier holds."""

from __future__ import annotations

from typing import Protocol

from wasmkilnd.model import Artifact, CacheKey, Refusal


class Verifier(Protocol):
    """Checks the signatures of stored values.

    Safe for use from any thread, and never raises. Every value from the shared tier passes
    both checks before any other code looks at it; a value from memory passes neither again.
    ``verify`` believes ``artifact.sha256``, since the stamp covers it and the bytes were hashed
    as they were stored: so they are hashed once.
    """

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return None if the attestation vouches for ``artifact`` under ``key``, else why not."""
        ...

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return None if a trusted key's ``stamp`` vouches for ``message``, else why not.

        For values that name their own time, or need none: a key that is revoked from a date on
        vouches for them. ``outdated`` compares the dates.
        """
        ...

    def check_stamp_now(self, message: bytes, stamp: bytes) -> Refusal | None:
        """As ``check_stamp``, for what names no time: no key counts that is revoked by now."""
        ...

    def outdated(self, artifact: Artifact, stamped_by: str = "") -> Refusal | None:
        """Return why ``artifact``, which counted when it was verified, counts no more, or None.

        It is older than the daemon accepts, or was made when its key, or ``stamped_by`` (the id
        of its stamp's key), was revoked already. Believes its attestation. Cheap.
        """
        ...

    def is_retired(self, artifact: Artifact) -> bool:
        """Return whether the key of ``artifact`` was revoked after it was made. Cheap.

        Such an artifact is served, and compiled again.
        """
        ...

    def wants_certificate(self, key_id: str) -> bool:
        """Return whether a certificate may make this key, which is not trusted, trusted."""
        ...

    def learn_certificate(self, chain: bytes) -> None:
        """Trust the key of a certificate if a trusted CA issued it; do nothing else."""
        ...


class Sealer(Verifier, Protocol):
    """Signs artifacts and stored values. Safe for use from any thread, and never raises."""

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` with an attestation that binds it to its key."""
        ...

    def certificate_of(self, artifact: Artifact) -> bytes:
        """Return the certificate of the key that signed ``artifact``, empty if none is known."""
        ...

    def stamp(self, message: bytes) -> bytes:
        """Return ``STAMP_BYTES`` that tell other daemons which key vouches for ``message``."""
        ...
