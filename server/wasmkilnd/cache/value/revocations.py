"""Revocations as the shared tier holds them: statements that daemons sign about other keys.

A statement counts if a trusted key signed it that is not the revoked one, and that is not revoked
itself by now.
"""

from __future__ import annotations

from wasmkiln.revoked_keys import parse_revocation, write_revocation

from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.model import STAMP_BYTES

MAX_REVOCATION_BYTES = 1024
"""The most bytes of a stored revocation."""

_KEY_ID_BYTES = 32
# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln revocation\0"


def write_statement(key_id: str, since_ms: int, stamp: Stamp) -> bytes:
    """Return the bytes to store for a revocation."""
    text = write_revocation(key_id, since_ms)
    return stamp(_PURPOSE + text) + text


def read_statement(key_id: str, record: bytes, check: CheckStamp) -> int | None:
    """Return since when ``record`` revokes the key; None if it is no statement that counts."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if not text or len(record) > MAX_REVOCATION_BYTES:
        return None
    if stamp[:_KEY_ID_BYTES].hex() == key_id or check(_PURPOSE + text, stamp):
        return None
    try:
        revoked, since_ms = parse_revocation(text)
    except ValueError:
        return None
    return since_ms if revoked == key_id else None
