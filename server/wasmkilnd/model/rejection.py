"""Why a stored value is not used."""

from __future__ import annotations

from enum import Enum


class RejectionCause(Enum):
    """The causes: few and fixed, since they are labels of a metric."""

    FORMAT = "format"
    """Not a value of wasmkilnd, or malformed."""
    VERSION = "version"
    """Written in a format of another version, or with an unknown codec."""
    TRUNCATED = "truncated"
    """Shorter than its header says."""
    INCOMPLETE = "incomplete"
    """A piece is missing: the server evicted it, or another client deleted it."""
    WRONG_KEY = "wrong_key"
    """About another key than the one that it was read from."""
    DIGEST = "digest"
    """The bytes are not those that were stored."""
    UNSIGNED = "unsigned"
    """It has no readable attestation."""
    STRANGER = "stranger"
    """It is signed by a key that is not trusted."""
    MISMATCH = "mismatch"
    """Its attestation is forged, or about something else."""
    FOREIGN = "foreign"
    """A file of the host store with another owner, another mode, a link, or no file at all."""
    REVOKED = "revoked"
    """It is signed by a key that is revoked since before that."""
    TOO_OLD = "too_old"
    """Its attestation is older than ``value_max_age_s``."""
    EVICTED = "evicted"
    """It is older than an Evict of its scope: another client wrote back a copy."""
