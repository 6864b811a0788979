"""Attestations: who says that an artifact is what it is called.

An attestation is a DSSE envelope (https://github.com/secure-systems-lab/dsse) with one Ed25519
signature over a `Statement`. The daemon and the client share this module;
docs/how-to/verify.md describes the format for other languages. Signing and verifying need
securesystemslib, which is therefore imported inside those functions only.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from wasmkiln._statement import Claims, Statement, canonical_json, expect_text
from wasmkiln.errors import AttestationInvalid, VerificationNotInstalled

if TYPE_CHECKING:
    from securesystemslib.signer import Signer, SSlibKey

    from wasmkiln.trusted_keys import PublicKey

    class KeyLookup(Protocol):
        """Finds trusted keys by their ids."""

        def get(self, key_id: str, /) -> PublicKey | None:
            """Return the key with this id, or None where it is not trusted."""

        @property
        def revoked(self) -> frozenset[str]:
            """The ids of the revoked keys; see `wasmkiln.revoked_keys`."""


__all__ = [
    "MISMATCH",
    "PAYLOAD_TYPE",
    "REVOKED",
    "STRANGER",
    "UNSIGNED",
    "Claims",
    "KeyLookup",
    "Statement",
    "check_claims",
    "find_key",
    "open_envelope",
    "peek",
    "sign",
    "verify",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"

_ENVELOPE_FIELDS = {"payload", "payloadType", "signatures"}
_SIGNATURE_FIELDS = {"keyid", "sig"}
_KEY_ID = re.compile(r"[0-9a-f]{64}")

_NOT_INSTALLED = (
    "checking attestations needs securesystemslib[crypto]: pip install 'wasmkiln[verify]'"
)

_MALFORMED = "cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it"

UNSIGNED, STRANGER, MISMATCH, REVOKED = "unsigned", "stranger", "mismatch", "revoked"
"""The causes of AttestationInvalid. The daemon's metrics have them as labels."""


def sign(statement: Statement, signer: Signer) -> bytes:
    """Return the signed envelope of a statement, as JSON."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(statement.payload(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return canonical_json(envelope.to_dict())


def open_envelope(
    envelope: bytes, trusted: KeyLookup, *, stamped: bool = False
) -> tuple[Statement, str]:
    """Return the statement that a trusted key signed, and the key's id.

    Accept only an envelope that is byte for byte as `sign` writes it, with one signature, and
    parse the payload only after its signature was verified. With `stamped`, something else
    vouches for the envelope: all holds but that its signature is verified. Raise
    AttestationInvalid, and VerificationNotInstalled where securesystemslib is missing.
    """
    if not envelope:
        _refuse(UNSIGNED, "the artifact has no attestation")
    try:
        document: dict[str, Any] = json.loads(envelope)
        [signature] = document["signatures"]
        key_id = signature["keyid"]
        # The signature does not cover the envelope's own fields: refuse any that were added.
        exact = set(document) == _ENVELOPE_FIELDS and set(signature) == _SIGNATURE_FIELDS
        canonical = exact and _KEY_ID.fullmatch(key_id) and envelope == canonical_json(document)
    except (ValueError, LookupError, TypeError, RecursionError):
        canonical = False
    if not canonical:
        _refuse(UNSIGNED, _MALFORMED)
    key = find_key(key_id, trusted)
    if document["payloadType"] != PAYLOAD_TYPE:
        _refuse(MISMATCH, "the attestation's payload is of another type", key.id)
    try:
        payload = (
            base64.b64decode(document["payload"])
            if stamped
            else _signed_payload(document, key, envelope)
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        _refuse(UNSIGNED, _MALFORMED, key.id)
    try:
        statement = Statement.parse(payload)
    except (ValueError, LookupError, TypeError, RecursionError):
        _refuse(MISMATCH, "the attestation's statement is not about an artifact", key.id)
    return statement, key.id


def find_key(key_id: str, trusted: KeyLookup) -> PublicKey:
    """Return the key with this id. Raise AttestationInvalid if it is not trusted, or revoked."""
    if key_id in trusted.revoked:
        _refuse(REVOKED, f"the attestation is signed by a key that is revoked: {key_id}", key_id)
    key = trusted.get(key_id)
    if key is None:
        why = f"the attestation is signed by a key that is not trusted: {key_id}"
        _refuse(STRANGER, why, key_id)
    return key


def peek(envelope: bytes) -> tuple[Statement, str] | None:
    """Return an envelope's statement and key id without verifying anything, to show them.

    Return None when the envelope cannot be read.
    """
    try:
        document = json.loads(envelope)
        statement = Statement.parse(base64.b64decode(document["payload"]))
        return statement, expect_text(document["signatures"][0]["keyid"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def check_claims(statement: Statement, known: Claims) -> None:
    """Raise AttestationInvalid, naming the field, unless the statement claims what is known."""
    for field in fields(Claims):
        if getattr(statement.claims, field.name) != getattr(known, field.name):
            _refuse(MISMATCH, f"the attestation is about another {field.name.replace('_', ' ')}")


def verify(envelope: bytes, known: Claims, trusted: KeyLookup) -> Statement:
    """Return the statement that a trusted key signed about exactly this artifact.

    The caller has to check that the artifact's bytes have the digest in `known`. Raise
    AttestationInvalid, and VerificationNotInstalled where securesystemslib is missing.
    """
    statement, _ = open_envelope(envelope, trusted)
    check_claims(statement, known)
    return statement


def _signed_payload(document: dict[str, Any], key: PublicKey, envelope: bytes) -> bytes:
    """Verify the signature. Return the payload, decoded."""
    try:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import FormatError, VerificationError
    except ModuleNotFoundError as error:
        raise VerificationNotInstalled(_NOT_INSTALLED) from error
    try:
        opened = Envelope.from_dict(document)
    except FormatError as error:
        raise ValueError("malformed") from error
    # Base64 can encode the same bytes in several ways; accept only the one that `sign` writes.
    if canonical_json(opened.to_dict()) != envelope:
        raise ValueError("not canonical")
    try:
        opened.verify([_sslib_key(key)], 1)
    except VerificationError:
        _refuse(MISMATCH, "the attestation's signature is not by the key that it names", key.id)
    return opened.payload


@lru_cache(maxsize=256)
def _sslib_key(key: PublicKey) -> SSlibKey:
    from securesystemslib.signer import SSlibKey

    try:
        import cryptography  # noqa: F401  Without it, securesystemslib is 100 times slower.
    except ModuleNotFoundError as error:
        raise VerificationNotInstalled(_NOT_INSTALLED) from error
    return SSlibKey(key.id, "ed25519", "ed25519", {"public": key.hex})


def _refuse(cause: str, why: str, key_id: str = "") -> NoReturn:
    metadata = {"cause": cause} | ({"key_id": key_id} if key_id else {})
    raise AttestationInvalid(why, metadata=metadata)
