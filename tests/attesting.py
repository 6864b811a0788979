"""Attestations made without a daemon, for tests of the client."""

from __future__ import annotations

import hashlib

from securesystemslib.signer import CryptoSigner, SSlibKey
from wasmkiln import Artifact, ArtifactHeader, PublicKey
from wasmkiln._claims import claims_of
from wasmkiln.attestation import Statement, sign
from wasmkiln.v1 import types_pb2 as types

WASM = b"\0asm\x01\0\0\0"


class Attester:
    """A key pair that attests whatever a header says."""

    def __init__(self) -> None:
        generated = CryptoSigner.generate_ed25519()
        self.key = PublicKey(bytes.fromhex(generated.public_key.keyval["public"]))
        public = SSlibKey(self.key.id, "ed25519", "ed25519", {"public": self.key.hex})
        self._signer = CryptoSigner(generated._private_key, public)

    def attest(self, header: ArtifactHeader) -> None:
        """Put an attestation into ``header``."""
        statement = Statement(
            claims_of(header),
            daemon_version="1.2.3",
            finished_on="2026-01-01T00:00:00Z",
            compile_time_s=0.42,
            types_sha256="0" * 64,
        )
        header.attestation = sign(statement, self._signer)


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
