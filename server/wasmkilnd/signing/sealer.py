"""Sign artifacts, and verify those that come back from the shared tier."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from wasmkiln.attestation import (
    MISMATCH,
    REVOKED,
    STRANGER,
    UNSIGNED,
    Claims,
    Statement,
    check_claims,
    open_envelope,
    peek,
    sign,
)
from wasmkiln.errors import AttestationInvalid
from wasmkiln.revoked_keys import ALTOGETHER_MS, shown

from wasmkilnd.model import Artifact, CacheKey, ExternType, Refusal

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from wasmkiln.attestation import KeyLookup

_KEY_ID_BYTES = 32
_TOO_OLD = "too_old"

_ADVICE = {
    UNSIGNED: "an older version of the daemon or another program wrote it",
    STRANGER: "daemons on one Redis have to share keys: see `wasmkilnd keys trust`,"
    " WASMKILN_KEYS_DIR and WASMKILN_SIGNING_KEY",
}


class DsseVerifier:
    """Accepts signatures by the trusted keys only.

    An attestation signs its claims, and with them the compile time and a digest over imports
    and exports. A stamp signs the bytes that it is made for.
    """

    def __init__(
        self,
        trusted: KeyLookup,
        *,
        max_age_s: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Accept attestations of the last ``max_age_s``; 0 for all. ``now`` is the time of day."""
        self._trusted = trusted
        self.max_age_s = max_age_s
        self._now = now

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return why no trusted key vouches for ``artifact`` under ``key``, None if one does."""
        if artifact.key != key:
            return Refusal(MISMATCH, "the artifact belongs to another cache key")
        try:
            statement, _ = open_envelope(artifact.attestation, self._trusted)
            check_claims(statement, _claims(artifact))
        except AttestationInvalid as error:
            cause = error.metadata["cause"]
            advice = _ADVICE.get(cause)
            return Refusal(cause, f"{error} ({advice})" if advice else str(error))
        described = (artifact.compile_time_s, _types_sha256(artifact))
        if described != (statement.compile_time_s, statement.types_sha256):
            return Refusal(MISMATCH, "the attestation states another compile time or other types")
        return self._too_old(statement.when_ms)

    def outdated(self, artifact: Artifact, stamped_by: str = "") -> Refusal | None:
        """Return why ``artifact``, whose attestation is verified, counts no more, or None."""
        if not (self.max_age_s or self._trusted.revoked):
            return None
        key_id, made_ms = attested(artifact.attestation)
        for each in (key_id, stamped_by):
            since_ms = self._trusted.revoked.get(each)
            if since_ms is not None and made_ms >= since_ms:
                return _revoked(each, since_ms)
        return self._too_old(made_ms)

    def wants_certificate(self, key_id: str) -> bool:
        """Return False: the trusted keys are those that were given."""
        return False

    def learn_certificate(self, chain: bytes) -> None:
        """Do nothing."""

    def is_retired(self, artifact: Artifact) -> bool:
        """Return whether the key of ``artifact`` was revoked after it was made."""
        revoked = self._trusted.revoked
        return bool(revoked) and attested(artifact.attestation)[0] in revoked

    def check_stamp_now(self, message: bytes, stamp: bytes) -> Refusal | None:
        """As ``check_stamp``, for what names no time: it counts as signed now."""
        key_id = stamp[:_KEY_ID_BYTES].hex()
        since_ms = self._trusted.revoked.get(key_id)
        if since_ms is not None and self._now() * 1000 >= since_ms:
            return _revoked(key_id, since_ms)
        return self.check_stamp(message, stamp)

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return why no trusted key vouches for ``message``, None if one does."""
        key_id, signature = stamp[:_KEY_ID_BYTES].hex(), stamp[_KEY_ID_BYTES:]
        if self._trusted.revoked.get(key_id) == ALTOGETHER_MS:
            return _revoked(key_id, ALTOGETHER_MS)
        key = self._trusted.get(key_id)
        if key is None:
            why = f"the value is signed by a key that is not trusted: {key_id}"
            return Refusal(STRANGER, f"{why} ({_ADVICE[STRANGER]})")
        try:
            _public_key(key.raw).verify(signature, message)
        except InvalidSignature:
            return Refusal(MISMATCH, "the value's signature does not match its key")
        return None

    def _too_old(self, made_ms: int) -> Refusal | None:
        if not self.max_age_s or made_ms >= (self._now() - self.max_age_s) * 1000:
            return None
        return Refusal(
            _TOO_OLD, f"the attestation is older than value_max_age_s ({self.max_age_s:g} s)"
        )


class DsseSealer(DsseVerifier):
    """Signs the artifacts that this daemon compiles."""

    def __init__(
        self,
        signer: Signer,
        trusted: KeyLookup,
        daemon_version: str,
        now: Callable[[], float] = time.time,
        max_age_s: float = 0,
    ) -> None:
        """Sign with ``signer``; ``now`` and ``max_age_s`` are as in DsseVerifier."""
        super().__init__(trusted, max_age_s=max_age_s, now=now)
        self._signer = signer
        self._daemon_version = daemon_version

    def seal(self, artifact: Artifact, after_ms: int = 0) -> Artifact:
        """Return ``artifact`` with an envelope signed by the signing key.

        The envelope says that the artifact was made now, and in any case later than ``after_ms``.
        """
        now_s = self._now()
        statement = Statement(
            _claims(artifact),
            daemon_version=self._daemon_version,
            finished_on=datetime.fromtimestamp(int(now_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            made_ms=max(int(now_s * 1000), after_ms + 1),
            compile_time_s=float(artifact.compile_time_s),
            types_sha256=_types_sha256(artifact),
        )
        return replace(artifact, attestation=sign(statement, self._signer))

    def certificate_of(self, artifact: Artifact) -> bytes:
        """Return nothing: this sealer knows no certificates."""
        return b""

    def stamp(self, message: bytes) -> bytes:
        """Return the signing key's id and its signature of ``message``."""
        signature = self._signer.sign(message)
        return bytes.fromhex(signature.keyid) + bytes.fromhex(signature.signature)


@lru_cache(maxsize=256)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


@lru_cache(maxsize=1024)
def attested(attestation: bytes) -> tuple[str, int]:
    """Return the id of the key that signed an attestation, and when; nothing if it is unsigned."""
    attested = peek(attestation)
    return (attested[1], attested[0].when_ms) if attested else ("", 0)


def _revoked(key_id: str, since_ms: int) -> Refusal:
    return Refusal(REVOKED, f"the key that signed it is revoked {shown(since_ms)}: {key_id}")


def _claims(artifact: Artifact) -> Claims:
    spec = artifact.spec
    return Claims(
        artifact_sha256=artifact.sha256,
        module_sha256=artifact.module_sha256,
        fingerprint=spec.fingerprint,
        kind=artifact.kind.value,
        engine={
            "name": spec.engine.name,
            "version": spec.engine.version,
            "coreVersion": spec.engine.core_version,
            "compiler": spec.engine.compiler,
        },
        target=spec.target,
        cpu=spec.cpu,
        settings=dict(spec.settings),
        changed_settings=dict(spec.changed_settings),
    )


def _types_sha256(artifact: Artifact) -> str:
    described = {
        "exports": _rows(artifact.exports),
        "imports": _rows(artifact.imports),
        "truncated": artifact.types_truncated,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _rows(types: tuple[ExternType, ...]) -> list[list[str]]:
    return [[each.module, each.name, each.kind, each.type] for each in types]
