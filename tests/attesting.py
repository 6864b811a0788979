"""Attestations made without a daemon, for tests of the client."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmkiln import Artifact, ArtifactHeader, PublicKey
from wasmkiln.attestation import Statement, claims_of, sign
from wasmkiln.v1 import types_pb2 as types

WASM = b"\0asm\x01\0\0\0"


class Attester:
    """A key pair that attests whatever a header says."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.key = PublicKey(self._private.public_key().public_bytes_raw())

    def attest(self, header: ArtifactHeader) -> None:
        """Put an attestation into ``header``."""
        statement = Statement(
            claims_of(header),
            daemon_version="1.2.3",
            finished_on="2026-01-01T00:00:00Z",
            compile_time_s=0.42,
            types_sha256="0" * 64,
        )
        header.attestation = sign(statement, self.key.id, self._private.sign)


def attested(content: bytes = b"code", *, by: Attester | None) -> Artifact:
    """Return an artifact of an engine that does not exist, with or without an attestation."""
    header = ArtifactHeader(
        module_sha256=hashlib.sha256(WASM).hexdigest(),
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        engine=types.Engine(
            id="nothing-1", name="nothing", version="1", core_version="2", compiler="none"
        ),
        target="x86_64-unknown-linux-gnu",
        cpu="baseline",
        settings={"fuel": "false"},
        fingerprint="f" * 64,
        kind=types.KIND_CORE_MODULE,
    )
    if by:
        by.attest(header)
    return Artifact(content, header)
