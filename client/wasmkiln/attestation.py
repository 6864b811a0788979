"""Attestations: who says that an artifact is what it is called.

An attestation is a DSSE envelope (https://github.com/secure-systems-lab/dsse) with one Ed25519
signature over an in-toto Statement v1 whose predicate is SLSA provenance v1. The daemon and the
client share this module; docs/verification.md describes the format for others. Only signing
and verifying need securesystemslib, which is therefore imported there.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from wasmkiln.errors import AttestationInvalid, VerificationNotInstalled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Signer, SSlibKey

    from wasmkiln.trusted_keys import PublicKey

    class KeyLookup(Protocol):
        """Finds trusted keys."""

        def get(self, key_id: str, /) -> PublicKey | None:
            """The key with this id, if it is trusted."""


PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:wasmkiln:compile:v1"
BUILDER_ID = "urn:wasmkiln:daemon"

_ENVELOPE_FIELDS = {"payload", "payloadType", "signatures"}
_SIGNATURE_FIELDS = {"keyid", "sig"}
_KEY_ID = re.compile(r"[0-9a-f]{64}")

_NOT_INSTALLED = (
    "checking attestations needs securesystemslib[crypto]: pip install 'wasmkiln[verify]'"
)

UNSIGNED, STRANGER, MISMATCH = "unsigned", "stranger", "mismatch"
"""The causes of AttestationInvalid: few, so that they can be a metric's labels."""


@dataclass(frozen=True)
class Claims:
    """What an attestation binds together, as its reader knows it from elsewhere."""

    artifact_sha256: str
    module_sha256: str
    fingerprint: str
    kind: str
    """`core` or `component`."""
    engine: Mapping[str, str]
    """`name`, `version`, `coreVersion` and `compiler`."""
    target: str
    cpu: str
    settings: Mapping[str, str]
    changed_settings: Mapping[str, str]


@dataclass(frozen=True)
class Statement:
    """What an attestation says: the claims, and how the artifact came to be."""

    claims: Claims
    daemon_version: str
    finished_on: str
    """When it was signed: RFC 3339, in UTC."""
    compile_time_s: float
    types_sha256: str
    """A digest over the module's imports and exports, which the daemon checks."""
    made_ms: int = 0
    """When it was made, in milliseconds since 1970, or a moment after the last Evict that the
    daemon knew of, if that is later; 0 where it does not say (daemons of v0.1.0)."""

    def payload(self) -> bytes:
        """The in-toto statement's bytes, which are what is signed."""
        claims = self.claims
        return _dump(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": "artifact", "digest": {"sha256": claims.artifact_sha256}}],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": {
                        "buildType": BUILD_TYPE,
                        "externalParameters": {
                            "changedSettings": dict(claims.changed_settings),
                            "cpu": claims.cpu,
                            "engine": dict(claims.engine),
                            "fingerprint": claims.fingerprint,
                            "kind": claims.kind,
                            "settings": dict(claims.settings),
                            "target": claims.target,
                        },
                        "resolvedDependencies": [
                            {"name": "module", "digest": {"sha256": claims.module_sha256}}
                        ],
                    },
                    "runDetails": {
                        "builder": {
                            "id": BUILDER_ID,
                            "version": {"wasmkiln": self.daemon_version},
                        },
                        "byproducts": [{"name": "types", "digest": {"sha256": self.types_sha256}}],
                        "metadata": {
                            "finishedOn": self.finished_on,
                            "wasmkiln_compileTimeS": self.compile_time_s,
                            **({"wasmkiln_madeMs": self.made_ms} if self.made_ms else {}),
                        },
                    },
                },
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Reads a payload; what it has beyond today's fields is left alone.

        Raises KeyError, TypeError or ValueError when it is no statement of ours.
        """
        said = json.loads(payload)
        predicate = said["predicate"]
        definition, details = predicate["buildDefinition"], predicate["runDetails"]
        kinds = said["_type"], said["predicateType"], definition["buildType"]
        if kinds != (STATEMENT_TYPE, PREDICATE_TYPE, BUILD_TYPE):
            raise ValueError("it is of another type")
        [subject], [module] = said["subject"], definition["resolvedDependencies"]
        [types] = details["byproducts"]
        given = definition["externalParameters"]
        made_ms = dict(details["metadata"]).get("wasmkiln_madeMs", 0)
        if type(made_ms) is not int or made_ms < 0:
            raise ValueError("its time is no number of milliseconds")
        return cls(
            Claims(
                artifact_sha256=_text(subject["digest"]["sha256"]),
                module_sha256=_text(module["digest"]["sha256"]),
                fingerprint=_text(given["fingerprint"]),
                kind=_text(given["kind"]),
                engine=_texts(given["engine"]),
                target=_text(given["target"]),
                cpu=_text(given["cpu"]),
                settings=_texts(given["settings"]),
                changed_settings=_texts(given["changedSettings"]),
            ),
            daemon_version=_text(details["builder"]["version"]["wasmkiln"]),
            finished_on=_text(details["metadata"]["finishedOn"]),
            compile_time_s=_number(details["metadata"]["wasmkiln_compileTimeS"]),
            types_sha256=_text(types["digest"]["sha256"]),
            made_ms=made_ms,
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("expected an object")
    return {name: _text(each) for name, each in value.items()}


def _number(value: Any) -> float:
    # NaN is smaller than nothing, and a whole number may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise TypeError("expected a number")
    return value


def sign(statement: Statement, signer: Signer) -> bytes:
    """Return the envelope, as JSON, of a statement."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(statement.payload(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return _dump(envelope.to_dict())


def open_envelope(envelope: bytes, trusted: KeyLookup) -> tuple[Statement, str]:
    """Return what a trusted key said, and the key's id.

    The envelope has to be byte for byte as `sign` writes it, with one signature. Nothing of
    the payload is looked at before the signature was verified. Raises AttestationInvalid, and
    VerificationNotInstalled.
    """
    if not envelope:
        _refuse(UNSIGNED, "the artifact has no attestation")
    try:
        said: dict[str, Any] = json.loads(envelope)
        [signature] = said["signatures"]
        key_id = signature["keyid"]
        # The names that are no part of what is signed are counted, or more could be added.
        ours = set(said) == _ENVELOPE_FIELDS and set(signature) == _SIGNATURE_FIELDS
        canonical = ours and _KEY_ID.fullmatch(key_id) and envelope == _dump(said)
    except (ValueError, LookupError, TypeError, RecursionError):
        canonical = False
    if not canonical:
        _refuse(UNSIGNED, "the attestation is no DSSE envelope as wasmkiln writes it")
    key = trusted.get(key_id)
    if key is None:
        _refuse(
            STRANGER, f"the attestation is signed by a key that is not trusted: {key_id}", key_id
        )
    try:
        payload = _signed_payload(said, key, envelope)
    except (ValueError, LookupError, TypeError, AttributeError):
        _refuse(UNSIGNED, "the attestation is no DSSE envelope as wasmkiln writes it", key.id)
    try:
        return Statement.parse(payload), key.id
    except (ValueError, LookupError, TypeError, RecursionError):
        _refuse(MISMATCH, "the attestation's statement is not one about an artifact", key.id)


def peek(envelope: bytes) -> tuple[Statement, str] | None:
    """Return what an envelope says, and the id of the key that it says it is signed by.

    Believes nothing and proves nothing: for showing. None when it can't be read.
    """
    try:
        said = json.loads(envelope)
        statement = Statement.parse(base64.b64decode(said["payload"]))
        return statement, _text(said["signatures"][0]["keyid"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def check_claims(statement: Statement, known: Claims) -> None:
    """Compares what was attested with what is known. Raises AttestationInvalid, naming a field."""
    for field in fields(Claims):
        if getattr(statement.claims, field.name) != getattr(known, field.name):
            _refuse(MISMATCH, f"the attestation is about another {field.name.replace('_', ' ')}")


def verify(envelope: bytes, known: Claims, trusted: KeyLookup) -> Statement:
    """Return what a trusted key said about exactly this artifact.

    Raises AttestationInvalid, and VerificationNotInstalled. That the artifact's bytes have
    the digest that `known` says is for the caller to see to.
    """
    statement, _ = open_envelope(envelope, trusted)
    check_claims(statement, known)
    return statement


def _signed_payload(said: dict[str, Any], key: PublicKey, envelope: bytes) -> bytes:
    """Return the payload once its signature was verified."""
    try:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import FormatError, VerificationError
    except ModuleNotFoundError as error:
        raise VerificationNotInstalled(_NOT_INSTALLED) from error
    try:
        opened = Envelope.from_dict(said)
    except FormatError as error:
        raise ValueError("malformed") from error
    # Base64 can say the same bytes in several ways, of which only one is ours.
    if _dump(opened.to_dict()) != envelope:
        raise ValueError("not canonical")
    if opened.payload_type != PAYLOAD_TYPE:
        _refuse(MISMATCH, "the attestation's payload is of another type", key.id)
    try:
        opened.verify([_sslib_key(key)], 1)
    except VerificationError:
        _refuse(MISMATCH, "the attestation's signature is not that of its key", key.id)
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


def _dump(document: object) -> bytes:
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
