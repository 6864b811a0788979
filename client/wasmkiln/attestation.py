"""Attestations: who says that an artifact is what it is called, and which keys a caller trusts.

An attestation is a DSSE envelope (https://github.com/secure-systems-lab/dsse) with one Ed25519
signature over a `Statement`: an in-toto Statement v1 with a SLSA provenance v1 predicate.
docs/how-to/verify.md describes the format for other languages. The daemon and the client
share this module. Reading needs the standard library only; verifying needs cryptography, which is
imported by the first verification.

Trust is a set of public keys less the ids in `revoked/`: a folder with a file `<key id>.json` for
each revoked key, beside the trusted keys or in their folder. Files of before 0.7 may name a date,
`since_ms`: the key counts as revoked whatever the date.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from wasmkiln.errors import AttestationInvalid, VerificationNotInstalled
from wasmkiln.shared import is_digest
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln.v1.types_pb2 import ArtifactHeader

    KeySource = str | os.PathLike[str]

ENV = "WASMKILN_TRUSTED_KEYS"
REVOKED_FOLDER = "revoked"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:wasmkiln:compile:v1"
BUILDER_ID = "urn:wasmkiln:daemon"

UNSIGNED, STRANGER, MISMATCH, REVOKED = "unsigned", "stranger", "mismatch", "revoked"
"""The causes of AttestationInvalid. The daemon's metrics have them as labels."""

KINDS = {KIND_CORE_MODULE: "core", KIND_COMPONENT: "component"}
"""The names of a module's kinds in statements and in engines.json."""

_KEY_BYTES = 32
# The start of every Ed25519 public key in PEM (RFC 8410); the key follows.
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_MAX_REVOCATION_BYTES = 4096
_MALFORMED = "cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it"
# What reading JSON of another shape raises.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


# Keys.


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes

    @property
    def id(self) -> str:
        """The SHA-256 of the key's 32 bytes, in lowercase hex: an envelope's keyid."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def hex(self) -> str:
        """The key as 64 hexadecimal digits."""
        return self.raw.hex()

    @property
    def pem(self) -> str:
        """The key as PEM, as openssl writes it."""
        body = base64.b64encode(_SPKI_PREFIX + self.raw).decode()
        return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read hex, base64 or PEM. Raise ValueError."""
        text, raw = text.strip(), b""
        pem = _PEM.fullmatch(text)
        with suppress(ValueError):
            if _HEX.fullmatch(text):
                raw = bytes.fromhex(text)
            else:
                raw = base64.b64decode("".join(pem[1].split()) if pem else text, validate=True)
        if pem:
            raw = raw.removeprefix(_SPKI_PREFIX) if raw.startswith(_SPKI_PREFIX) else b""
        if len(raw) != _KEY_BYTES:
            # The message does not quote the text: it may be a private key, pasted by mistake.
            raise ValueError(
                "not an Ed25519 public key: expected 64 hex digits, base64 of 32 bytes, or PEM"
            )
        return cls(raw)

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is this key's of `message`. Raise VerificationNotInstalled."""
        try:
            from cryptography.exceptions import InvalidSignature

            key = _verifier(self.raw)
        except ModuleNotFoundError as error:
            raise VerificationNotInstalled(
                "checking attestations needs cryptography: pip install 'wasmkiln[verify]'"
            ) from error
        with suppress(InvalidSignature):
            key.verify(signature, message)
            return True
        return False


@lru_cache(maxsize=256)
def _verifier(raw: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


class TrustedKeys(dict[str, PublicKey]):
    """The public keys that a caller trusts, by their ids, but for those in `revoked`.

    Nobody changes it once it is made.
    """

    def __init__(self, keys: Iterable[PublicKey] = (), revoked: Iterable[str] = ()) -> None:
        """Trust `keys`; refuse whatever a key signed whose id is in `revoked`."""
        super().__init__((key.id, key) for key in keys)
        self.revoked = frozenset(revoked)

    @classmethod
    def read(cls, sources: KeySource | Iterable[KeySource]) -> TrustedKeys:
        """Read the keys of one or more sources.

        A source is a key (hex, base64 or PEM), a file with PEM blocks or one key a line, a
        folder of `*.pem` files, or several of these separated by commas. With a folder, the
        revocations in `revoked/` count too, which is in it or, where it is called `trusted`,
        beside it: so it is in a daemon's key directory. Raise ValueError when a source is none
        of these, and OSError when a file cannot be read.
        """
        keys, revoked = list[PublicKey](), set[str]()
        for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
            for part in source.split(",") if isinstance(source, str) else [source]:
                keys += _keys_of(part, revoked)
        return cls(keys, revoked)

    @classmethod
    def choose(cls, argument: TrustedKeys | KeySource | Iterable[KeySource] | None) -> TrustedKeys:
        """Return `argument`, else the keys of WASMKILN_TRUSTED_KEYS, else none. Raise as `read`."""
        if isinstance(argument, TrustedKeys):
            return argument
        if argument is None:
            return cls.read(os.environ.get(ENV, ""))
        chosen = cls.read(argument)
        if not chosen:
            # With no key nothing would be checked, and a caller who passes a list wants a check.
            raise ValueError("trusted_keys has no key in it: leave it out to check nothing")
        return chosen


def _keys_of(source: KeySource, revoked: set[str]) -> list[PublicKey]:
    """Return the keys of one source; add the ids that are revoked beside them to `revoked`."""
    path = Path(source)
    if isinstance(source, str):
        text = source.strip()
        if not text:
            return []
        with suppress(ValueError):
            return [PublicKey.parse(text)]
        path = Path(text).expanduser()
        if "\n" in text or not path.exists():
            raise ValueError(
                "a trusted key is 64 hex digits, base64 of 32 bytes, PEM, or the path of a file or"
                " folder that exists"
            )
    if not path.is_dir():
        return _keys_in(path)
    for folder in (path, path.parent) if path.name == "trusted" else (path,):
        revoked |= read_revocations(folder / REVOKED_FOLDER)
    return [key for file in sorted(path.glob("*.pem")) for key in _keys_in(file)]


def _keys_in(file: Path) -> list[PublicKey]:
    try:
        text = file.read_text()
        blocks = [block[0] for block in _PEM.finditer(text)]
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return [PublicKey.parse(each) for each in blocks or lines or [""]]
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(
            f"cannot read {file}: expected Ed25519 public keys in hex, base64 or PEM, and no"
            " certificates"
        ) from error


def write_revocation(key_id: str) -> bytes:
    """Return the text of a file that revokes a key."""
    # Daemons and clients before 0.7 refuse a file without a date; 0 is none to them.
    return json.dumps({"key_id": key_id, "since_ms": 0}).encode() + b"\n"


def read_revocations(folder: Path) -> frozenset[str]:
    """Return the ids that the files `*.json` of a folder revoke; none if there is no such folder.

    Raise ValueError for a file that is no revocation, and OSError for one that cannot be read.
    """
    return frozenset(_revoked_by(file) for file in folder.glob("*.json"))


def _revoked_by(file: Path) -> str:
    with file.open("rb") as opened:
        text = opened.read(_MAX_REVOCATION_BYTES)
    with suppress(*UNREADABLE):
        key_id = json.loads(text)["key_id"]
        if is_digest(key_id):
            return as_text(key_id)
    raise ValueError(f"cannot read {file}: it does not say which key is revoked, as key_id")


# Statements.


@dataclass(frozen=True)
class Claims:
    """What an attestation binds together: one artifact, its module, and how it was compiled."""

    artifact_sha256: str
    module_sha256: str
    fingerprint: str
    kind: str
    """`core` or `component`."""
    engine: Mapping[str, str]
    """`name`, `version`, `coreVersion` and `compiler`: see `engine_claims`."""
    target: str
    cpu: str
    settings: Mapping[str, str]
    changed_settings: Mapping[str, str]


# The fields of claims that are external parameters of the build, and their names there.
_TEXTS = ("fingerprint", "kind", "target", "cpu")
_OBJECTS = {"engine": "engine", "settings": "settings", "changed_settings": "changedSettings"}


def engine_claims(engine: Any) -> dict[str, str]:
    """Return what a statement says of an engine: the contract's Engine, or the daemon's."""
    of = engine.name, engine.version, engine.core_version, engine.compiler
    return dict(zip(("name", "version", "coreVersion", "compiler"), of, strict=True))


def claims_of(header: ArtifactHeader) -> Claims:
    """Return what a header claims of its artifact, to compare with an attestation."""
    return Claims(
        *(header.artifact_sha256, header.module_sha256, header.fingerprint),
        KINDS.get(header.kind, ""),
        engine_claims(header.engine),
        *(header.target, header.cpu),
        *(dict(header.settings), dict(header.changed_settings)),
    )


@dataclass(frozen=True)
class Statement:
    """What an attestation says: the claims, and who made the artifact, when, and how fast."""

    claims: Claims
    daemon_version: str
    finished_on: str
    """When the daemon signed it: RFC 3339, in UTC."""
    compile_time_s: float
    types_sha256: str
    """A digest over the module's imports and exports. Daemons check it; clients do not."""
    made_ms: int = 0
    """When the artifact was made, in milliseconds since 1970; 0 where v0.1.0 signed."""

    def payload(self) -> bytes:
        """Return the in-toto statement's bytes, which are what a daemon signs."""
        claims = self.claims
        given: dict[str, Any] = {name: getattr(claims, name) for name in _TEXTS}
        given |= {key: dict(getattr(claims, name)) for name, key in _OBJECTS.items()}
        definition = {
            "buildType": BUILD_TYPE,
            "externalParameters": given,
            "resolvedDependencies": [_resource("module", claims.module_sha256)],
        }
        times = {"finishedOn": self.finished_on, "wasmkiln_compileTimeS": self.compile_time_s}
        details = {
            "builder": {"id": BUILDER_ID, "version": {"wasmkiln": self.daemon_version}},
            "byproducts": [_resource("types", self.types_sha256)],
            "metadata": times | ({"wasmkiln_madeMs": self.made_ms} if self.made_ms else {}),
        }
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [_resource("artifact", claims.artifact_sha256)],
                "predicateType": PREDICATE_TYPE,
                "predicate": {"buildDefinition": definition, "runDetails": details},
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Read a payload. Ignore fields that this version does not know.

        Raise KeyError, TypeError or ValueError when it is not a statement about an artifact.
        """
        document = json.loads(payload)
        definition = document["predicate"]["buildDefinition"]
        details = document["predicate"]["runDetails"]
        kinds = document["_type"], document["predicateType"], definition["buildType"]
        if kinds != (STATEMENT_TYPE, PREDICATE_TYPE, BUILD_TYPE):
            raise ValueError("expected a statement of another type")
        [subject], [module] = document["subject"], definition["resolvedDependencies"]
        [types] = details["byproducts"]
        given, metadata = definition["externalParameters"], details["metadata"]
        parameters: dict[str, Any] = {name: as_text(given[name]) for name in _TEXTS}
        parameters |= {name: as_texts(given[key]) for name, key in _OBJECTS.items()}
        made_ms = dict(metadata).get("wasmkiln_madeMs", 0)
        if type(made_ms) is not int or made_ms < 0:
            raise ValueError("wasmkiln_madeMs: expected a non-negative integer")
        return cls(
            Claims(
                artifact_sha256=as_text(subject["digest"]["sha256"]),
                module_sha256=as_text(module["digest"]["sha256"]),
                **parameters,
            ),
            daemon_version=as_text(details["builder"]["version"]["wasmkiln"]),
            finished_on=as_text(metadata["finishedOn"]),
            compile_time_s=_number(metadata["wasmkiln_compileTimeS"]),
            types_sha256=as_text(types["digest"]["sha256"]),
            made_ms=made_ms,
        )


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def as_text(value: Any) -> str:
    """Return what JSON says is a string. Raise TypeError."""
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def as_texts(value: Any) -> dict[str, str]:
    """Return what JSON says is an object of strings. Raise TypeError."""
    if not isinstance(value, dict):
        raise TypeError("expected an object")
    return {name: as_text(each) for name, each in value.items()}


def _number(value: Any) -> float:
    # `not … <` refuses NaN too; an integer in JSON may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise TypeError("expected a number")
    return value


def canonical_json(document: object) -> bytes:
    """Return JSON as wasmkiln signs it: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


# Envelopes.


class KeyLookup(Protocol):
    """Finds trusted keys by their ids."""

    @property
    def revoked(self) -> frozenset[str]:
        """The ids of the revoked keys."""

    def get(self, key_id: str, /) -> PublicKey | None:
        """Return the key with this id, or None where it is not trusted."""


def sign(statement: Statement, key_id: str, signer: Callable[[bytes], bytes]) -> bytes:
    """Return the envelope of a statement, as JSON, signed by the key with this id."""
    payload = statement.payload()
    return _envelope(PAYLOAD_TYPE, payload, key_id, signer(_signed_bytes(payload)))


def _envelope(payload_type: str, payload: bytes, key_id: str, signature: bytes) -> bytes:
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _signed_bytes(payload: bytes) -> bytes:
    """Return what DSSE signs: the pre-authentication encoding of a payload."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def open_envelope(envelope: bytes, trusted: KeyLookup) -> tuple[Statement, str]:
    """Return the statement that a trusted key signed, and the key's id.

    Accept only an envelope that is byte for byte as `sign` writes it, with one signature, and
    parse the payload only after its signature was verified. Raise AttestationInvalid, and
    VerificationNotInstalled where cryptography is missing.
    """
    if not envelope:
        _refuse(UNSIGNED, "the artifact has no attestation")
    try:
        document = json.loads(envelope)
        payload_type, [said] = document["payloadType"], document["signatures"]
        key_id, payload = as_text(said["keyid"]), base64.b64decode(document["payload"])
        signature = base64.b64decode(said["sig"])
        # The signature does not cover the envelope's own fields: refuse any that were added.
        canonical = envelope == _envelope(payload_type, payload, key_id, signature)
    except UNREADABLE:
        canonical = False
    if not (canonical and is_digest(key_id)):
        _refuse(UNSIGNED, _MALFORMED)
    if key_id in trusted.revoked:
        _refuse(REVOKED, f"the attestation is signed by a key that is revoked: {key_id}", key_id)
    key = trusted.get(key_id)
    if key is None:
        why = f"the attestation is signed by a key that is not trusted: {key_id}"
        _refuse(STRANGER, why, key_id)
    if payload_type != PAYLOAD_TYPE:
        _refuse(MISMATCH, "the attestation's payload is of another type", key_id)
    if not key.signed(_signed_bytes(payload), signature):
        why = "the attestation's signature is not by the key that it names"
        _refuse(MISMATCH, why, key_id)
    try:
        return Statement.parse(payload), key_id
    except UNREADABLE:
        _refuse(MISMATCH, "the attestation's statement is not about an artifact", key_id)


def verify(envelope: bytes, known: Claims, trusted: KeyLookup) -> Statement:
    """Return the statement that a trusted key signed about exactly this artifact.

    The caller has to check that the artifact's bytes have the digest in `known`. Raise as
    `open_envelope`; AttestationInvalid names the claim that differs.
    """
    statement, _ = open_envelope(envelope, trusted)
    for field in fields(Claims):
        if getattr(statement.claims, field.name) != getattr(known, field.name):
            _refuse(MISMATCH, f"the attestation is about another {field.name.replace('_', ' ')}")
    return statement


def verify_header(header: ArtifactHeader, trusted: KeyLookup) -> Statement:
    """Check that a trusted key signed a header. Return the statement, and raise, as `verify`."""
    return verify(header.attestation, claims_of(header), trusted)


def peek(envelope: bytes) -> tuple[Statement, str] | None:
    """Return an envelope's statement and key id without verifying anything, to show them.

    Return None when the envelope cannot be read.
    """
    with suppress(*UNREADABLE):
        document = json.loads(envelope)
        statement = Statement.parse(base64.b64decode(document["payload"]))
        return statement, as_text(document["signatures"][0]["keyid"])
    return None


def _refuse(cause: str, why: str, key_id: str = "") -> NoReturn:
    metadata = {"cause": cause} | ({"key_id": key_id} if key_id else {})
    raise AttestationInvalid(why, metadata=metadata)
