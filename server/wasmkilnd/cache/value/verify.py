"""Verify values against trusted keys before any of their bytes is used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.format import Opened
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.model import SHA256_HEX, Artifact, CacheKey, Module
from wasmkilnd.signing.sealer import Sealer

_PREAMBLE_BYTES = 8


def open_value(value: bytes, key: ValueKey, verifier: Sealer) -> Opened[Artifact | Module]:
    """Verify ``value``, which was read from under ``key``: head and attestation, not the pieces.

    Raises ValueRejected, and nothing else, whatever the bytes.
    """
    opened = value_format.open_head(value, key, verifier.check_stamp)
    if isinstance(opened.what, Artifact):
        _check_attestation(opened.what, opened.what.key, verifier)
        check_time(opened.what, verifier)
    return opened


def open_unnamed(head: bytes, verifier: Sealer) -> tuple[ValueKey, Opened[Artifact | Module]]:
    """Verify ``head``, of unknown origin; return the key that it is about, and the opened head.

    Raises ValueRejected, and nothing else, whatever the bytes.
    """
    opened = value_format.open_any(head, verifier.check_stamp)
    what = opened.what
    if isinstance(what, Module):
        return ValueKey(what.sha256), opened
    for digest in (what.module_sha256, what.spec.fingerprint):
        if not SHA256_HEX.fullmatch(digest):
            raise ValueRejected(Cause.WRONG_KEY, "the value belongs to an impossible key")
    _check_attestation(what, what.key, verifier)
    check_time(what, verifier)
    return ValueKey(what.module_sha256, what.spec.fingerprint), opened


def check_time(artifact: Artifact, verifier: Sealer) -> None:
    """Raise ValueRejected if time has passed over ``artifact``, whose attestation is verified."""
    if refusal := verifier.outdated(artifact):
        raise ValueRejected(Cause(refusal.cause), refusal.why)


class WholeCheck:
    """Checks all pieces of a value, in order, and the payload that they make up; keeps none.

    A daemon skips the last step: the stamp proves that a trusted key stored these pieces. Tools
    check even whether the key's owner stored the payload of the signed digest.
    """

    def __init__(self, opened: Opened[Artifact | Module]) -> None:
        self._what = opened.what
        self._body = opened.body
        self._next = 0
        self._beginning = b""
        self._digest = hashlib.sha256()

    def take(self, stored: Sequence[bytes | memoryview | None]) -> None:
        """Check the next pieces, as they are stored. Raises ValueRejected."""
        for raw in self._body.unpack(self._next, stored):
            self._beginning = self._beginning or raw[:_PREAMBLE_BYTES]
            self._digest.update(raw)
        self._next += len(stored)

    def finish(self) -> None:
        """Check the payload of all pieces. Raises ValueRejected."""
        if self._next < len(self._body.pieces):
            raise ValueRejected(Cause.INCOMPLETE, f"piece {self._next} is gone")
        differs = self._digest.hexdigest() != self._what.sha256
        if isinstance(self._what, Module):
            if differs:
                raise ValueRejected(Cause.WRONG_KEY, "the value is another module")
            value_format.check_kind(self._what.kind, self._beginning)
        elif differs:
            raise ValueRejected(Cause.MISMATCH, "the bytes do not have the signed digest")


def _check_attestation(artifact: Artifact, key: CacheKey, verifier: Sealer) -> None:
    try:
        refusal = verifier.verify(artifact, key)
    except Exception as error:
        # An attestation that breaks its parser proves nothing.
        why = f"cannot read the attestation ({type(error).__name__})"
        raise ValueRejected(Cause.MISMATCH, why) from None
    if refusal:
        raise ValueRejected(Cause(refusal.cause), refusal.why)
