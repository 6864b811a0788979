"""Attestations made without a daemon, for tests of the client."""

from __future__ import annotations

from securesystemslib.signer import CryptoSigner, SSlibKey
from wasmkiln import ArtifactHeader, PublicKey
from wasmkiln.artifact import claims_of
from wasmkiln.attestation import Statement, sign


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
