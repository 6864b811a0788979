"""An issuer of JSON Web Tokens of the tests' own."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://issuer.example.org", "wasmkiln"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def jwt_table(keys: object) -> str:
    """Return what a policy says of the issuer, whose keys are in a file or at a URL."""
    return f'[jwt]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nkeys = "{keys}"\n'


class TestIssuer:
    """Signs tokens with one key at a time."""

    __test__ = False

    def __init__(self, key: PrivateKey | None = None, key_id: str = "k1") -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.key_id = key_id

    @property
    def algorithm(self) -> str:
        """What it signs with."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return "RS256"
        return "ES256" if isinstance(self.key, ec.EllipticCurvePrivateKey) else "EdDSA"

    def row(self, **more: str) -> dict[str, Any]:
        """Return the public key as a row of a key set."""
        kind: Any = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(kind.to_jwk(self.key.public_key()))
        return {**public, "kid": self.key_id, **more}

    def key_set(self, *others: TestIssuer) -> bytes:
        """Return the key set with this key, and those of others."""
        return json.dumps({"keys": [each.row() for each in (self, *others)]}).encode()

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a token; a claim that is None is left out."""
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "me",
            "exp": int(time.time()) + 3600,
            **claims,
        }
        said = {name: value for name, value in said.items() if value is not None}
        headers = {"kid": self.key_id, **(header or {})}
        return jwt.encode(said, self.key, self.algorithm, headers)


def part(content: Any) -> str:
    """Return a part of a token by hand."""
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
