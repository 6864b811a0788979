"""Why a stored value is not used."""

from __future__ import annotations

from enum import Enum


class Cause(Enum):
    """The causes, few and fixed: they become a metric's labels."""

    FORMAT = "format"
    """Not a value of ours, or not well formed."""
    VERSION = "version"
    """Written in a format of another version, or with an unknown codec."""
    TRUNCATED = "truncated"
    """Shorter than it says itself."""
    INCOMPLETE = "incomplete"
    """A piece of it is gone: the server made room, or somebody deleted it."""
    WRONG_KEY = "wrong_key"
    """Made for another key than the one that it was read from."""
    DIGEST = "digest"
    """The bytes are not those that were stored."""
    UNSIGNED = "unsigned"
    """It carries no attestation that can be read."""
    STRANGER = "stranger"
    """Its attestation is signed by a key that is not trusted."""
    MISMATCH = "mismatch"
    """Its attestation is forged, or about something else."""
    EVICTED = "evicted"
    """It was made before an Evict that it is in the scope of: somebody has put it back."""


class ValueRejected(Exception):  # noqa: N818 - says what happened to the value
    """A stored value does not verify: it is to be deleted and never used."""

    def __init__(self, cause: Cause, why: str) -> None:
        super().__init__(f"{cause.value}: {why}")
        self.cause = cause
        self.why = why
