"""Sign artifacts and stored values, and verify those that come back from Redis and the disk.

Two things are signed. An artifact's attestation is a DSSE envelope around an in-toto statement
(``wasmkiln.attestation``, docs/how-to/verify.md): it covers the digests of artifact and
module, the fingerprint, kind, engine, target, cpu, settings, times, and a digest over imports and
exports. A stamp, the key's id (32 bytes) and its signature (64 bytes), covers the head of a value
or a record. What is stamped begins with the kind of value, so that a stamp of one kind never
passes for another.

Statements of another ``BUILD_TYPE`` (``wasmkiln.attestation``) are refused: to change what an
attestation states, give it a new one, and artifacts are compiled again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import structlog
from wasmkiln.attestation import (
    MISMATCH,
    REVOKED,
    STRANGER,
    UNSIGNED,
    Claims,
    PublicKey,
    Statement,
    engine_claims,
    peek,
    sign,
    verify,
)
from wasmkiln.errors import AttestationInvalid

from wasmkilnd.files.threads import DISK, on_disk
from wasmkilnd.model import Artifact, CacheKey, ExternType, Refusal
from wasmkilnd.signing.keys import Keys, KeysUnusable, PrivateKey

log = structlog.get_logger("wasmkilnd.keys")

LOOK_EVERY_S = 2.0
"""How often a key that is unknown makes the daemon look into its key directory, at most."""

_KEY_ID_BYTES = 32

_ADVICE = {
    UNSIGNED: "an older version of the daemon or another program wrote it",
    STRANGER: "daemons that share a tier have to share keys: see `wasmkilnd keys trust`,"
    " WASMKILN_KEYS_DIR and WASMKILN_SIGNING_KEY",
}


class Sealer:
    """Signs with the daemon's key, and accepts what a key that it trusts signed.

    Safe for use from any thread; only ``seal`` and ``stamp`` raise, where there is no key to sign
    with. A reload replaces the keys (``use``). For a key that is unknown, it looks into the key
    directory again, since another daemon of the fleet may have rotated: in a thread at once, and on
    the event loop in the background, so that this value is refused. Await ``meet`` before that.
    """

    def __init__(
        self,
        keys: Keys,
        daemon_version: str = "",
        *,
        max_age_s: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Accept attestations of the last ``max_age_s``; 0 for all. ``now`` is the time of day."""
        self.keys = keys
        self.max_age_s = max_age_s
        self._daemon_version = daemon_version
        self._now = now
        self._changing = threading.Lock()
        self._next_look_s = 0.0

    def use(self, keys: Keys, max_age_s: float) -> None:
        """Sign and verify with ``keys`` from now on. May block."""
        with self._changing:
            self.keys, self.max_age_s = keys, max_age_s

    async def meet(self, key_id: str) -> None:
        """Learn a key that another daemon may have begun to sign with; ``get`` returns it then."""
        if key_id not in self.keys.trusted and time.monotonic() >= self._next_look_s:
            await on_disk(self._look)

    def seal(self, artifact: Artifact) -> Artifact:
        """Return ``artifact`` with an attestation that binds it to its key."""
        now_s, signing = self._now(), self._signing
        statement = Statement(
            _claims(artifact),
            daemon_version=self._daemon_version,
            finished_on=datetime.fromtimestamp(int(now_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            made_ms=int(now_s * 1000),
            compile_time_s=float(artifact.compile_time_s),
            types_sha256=_types_sha256(artifact),
        )
        attestation = sign(statement, signing.public.id, signing.sign)
        return replace(artifact, attestation=attestation, described=None)

    def stamp(self, message: bytes) -> bytes:
        """Return ``STAMP_BYTES`` that tell other daemons which key vouches for ``message``."""
        signing = self._signing
        return bytes.fromhex(signing.public.id) + signing.sign(message)

    def verify(self, artifact: Artifact, key: CacheKey) -> Refusal | None:
        """Return why no trusted key vouches for ``artifact`` under ``key``, None if one does.

        The caller has to check that the artifact's bytes have the digest ``artifact.sha256``.
        """
        if artifact.key != key:
            return Refusal(MISMATCH, "the artifact belongs to another cache key")
        try:
            statement = verify(artifact.attestation, _claims(artifact), self)
        except AttestationInvalid as error:
            cause = error.metadata["cause"]
            advice = _ADVICE.get(cause)
            return Refusal(cause, f"{error} ({advice})" if advice else str(error))
        described = (artifact.compile_time_s, _types_sha256(artifact))
        if described != (statement.compile_time_s, statement.types_sha256):
            return Refusal(MISMATCH, "the attestation states another compile time or other types")
        return self._too_old(statement.made_ms)

    def outdated(self, artifact: Artifact) -> Refusal | None:
        """Return why ``artifact``, which is verified, is too old by now; None if it is not."""
        return self._too_old(_made_ms(artifact.attestation)) if self.max_age_s else None

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return why no trusted key vouches for ``message``, None if one does."""
        key_id, signature = stamp[:_KEY_ID_BYTES].hex(), stamp[_KEY_ID_BYTES:]
        if key_id in self.revoked:
            return Refusal(REVOKED, f"the value is signed by a key that is revoked: {key_id}")
        key = self.get(key_id)
        if key is None:
            why = f"the value is signed by a key that is not trusted: {key_id}"
            return Refusal(STRANGER, f"{why} ({_ADVICE[STRANGER]})")
        if key.signed(message, signature):
            return None
        return Refusal(MISMATCH, "the value's signature does not match its key")

    @property
    def revoked(self) -> frozenset[str]:
        """The ids of the revoked keys."""
        return self.keys.trusted.revoked

    def get(self, key_id: str, /) -> PublicKey | None:
        """Return the trusted key with this id, None if there is none."""
        key = self.keys.trusted.get(key_id)
        if key or time.monotonic() < self._next_look_s:
            return key
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._look()
        else:
            loop.run_in_executor(DISK, self._look)
        return self.keys.trusted.get(key_id)

    def _look(self) -> None:
        with self._changing:
            if time.monotonic() < self._next_look_s:
                return  # Another thread has looked in the meantime.
            try:
                self.keys = self.keys.with_new()
            except KeysUnusable as failure:
                log.warning("cannot read the trusted keys", cause=str(failure))
            self._next_look_s = time.monotonic() + LOOK_EVERY_S

    @property
    def _signing(self) -> PrivateKey:
        signing = self.keys.signing
        if signing is None:
            raise KeysUnusable("there is no key to sign with: `wasmkilnd keys generate` makes one")
        return signing

    def _too_old(self, made_ms: int) -> Refusal | None:
        max_age_s = self.max_age_s
        if not max_age_s or made_ms >= (self._now() - max_age_s) * 1000:
            return None
        why = f"the attestation is older than value_max_age_s ({max_age_s:g} s)"
        return Refusal("too_old", why)


@lru_cache(maxsize=1024)
def _made_ms(attestation: bytes) -> int:
    attested = peek(attestation)
    return attested[0].made_ms if attested else 0


def _claims(artifact: Artifact) -> Claims:
    spec = artifact.spec
    return Claims(
        artifact_sha256=artifact.sha256,
        module_sha256=artifact.module_sha256,
        fingerprint=spec.fingerprint,
        kind=artifact.kind.value,
        engine=engine_claims(spec.engine),
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
