"""Signing keys as users have them: pairs of keys, and the directory of docs/how-to/keys.md."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmkiln import PublicKey

from tests.e2e.programs import wasmkilnd


class KeyPair:
    """An Ed25519 private key in the forms that settings and files take, and its public half."""

    def __init__(self, private: Ed25519PrivateKey | None = None) -> None:
        """Make a new pair, or take a private key's."""
        self._private = private or Ed25519PrivateKey.generate()
        self.public = PublicKey(self._private.public_key().public_bytes_raw())

    @property
    def pem(self) -> str:
        """The private key as PKCS #8 PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    @property
    def base64(self) -> str:
        """The private key as one line, as ``wasmkilnd keys generate --print`` shows one."""
        return base64.b64encode(self._private.private_bytes_raw()).decode()


class KeyDirectory:
    """A daemon's key directory. Files are read and written where no command is under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, state_dir: Path) -> KeyDirectory:
        """Return the one in a state directory."""
        return cls(state_dir / "keys")

    def pair(self) -> KeyPair:
        """Return the signing key; make it if there is none yet."""
        file = self.folder / "signing.pem"
        if not file.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            pair = KeyPair()
            _write(file, pair.pem)
            self.trust(pair.public)
        private = serialization.load_pem_private_key(file.read_bytes(), password=None)
        assert isinstance(private, Ed25519PrivateKey)
        return KeyPair(private)

    @property
    def public(self) -> PublicKey:
        """The public half of the signing key."""
        return self.pair().public

    def trust(self, key: PublicKey) -> None:
        """Trust a key from the next start or reload on."""
        _write(self.folder / "trusted" / f"{key.id}.pem", key.pem)

    def revoked(self) -> set[str]:
        """Return the ids of the keys that are revoked here."""
        return {file.stem for file in (self.folder / "revoked").glob("*.json")}

    def revoke_since(self, key_id: str, since_ms: int) -> None:
        """Revoke a key as wasmkilnd 0.6.0 does, from a date on."""
        said = json.dumps({"key_id": key_id, "since_ms": since_ms})
        _write(self.folder / "revoked" / f"{key_id}.json", said)

    def run(self, *words: str) -> str:
        """Run ``wasmkilnd keys``, which has to succeed; return its standard output."""
        return wasmkilnd("keys", *words, "--keys-dir", str(self.folder))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)
