"""The Ed25519 private key: how it is read, written and used, and never shown."""

from __future__ import annotations

import base64
import binascii
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey
from wasmkiln.trusted_keys import PublicKey

_SEED_BYTES = 32
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class PrivateKey:
    """An Ed25519 private key. Text and repr show the public half's id only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> PrivateKey:
        r"""Read unencrypted PKCS #8 PEM, or base64 or hex of the 32 bytes.

        PEM may have its line breaks as ``\n``, which is how an environment variable often
        comes. Raises ValueError, which holds nothing of the text.
        """
        text = text.strip().replace("\\n", "\n")
        if "-----BEGIN" in text:
            key = _from_pem(text)
        elif len(seed := _seed(text)) == _SEED_BYTES:
            key = Ed25519PrivateKey.from_private_bytes(seed)
        else:
            key = None
        if key is None:
            raise ValueError(
                "it is not an Ed25519 private key: write unencrypted PKCS #8 PEM, or base64 of its"
                " 32 bytes"
            )
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The secret itself as PKCS #8 PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def base64(self) -> str:
        """The secret itself as one line, for an environment variable."""
        return base64.b64encode(self._key.private_bytes_raw()).decode()

    def signer(self) -> Signer:
        """Return what signs envelopes with this key."""
        public = SSlibKey(self.public.id, "ed25519", "ed25519", {"public": self.public.hex})
        return CryptoSigner(self._key, public)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id})"


def _from_pem(text: str) -> Ed25519PrivateKey | None:
    # Raise nothing from the library: its messages may quote what they read.
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PrivateKey) else None


def _seed(text: str) -> bytes:
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
