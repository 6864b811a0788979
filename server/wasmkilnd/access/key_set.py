"""JSON Web Key Sets: the public keys of an issuer, of which only safe ones are used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from wasmkilnd.access.unusable import AccessUnusable, read

_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the algorithms that it may have signed with: asymmetric ones only."""

    id: str
    key: Any
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of an issuer."""

    keys: Sequence[SigningKey] = ()

    def find(self, key_id: str | None) -> SigningKey | None:
        """Return the key of this id. A token may leave it out where there is one key."""
        if key_id is None:
            return self.keys[0] if len(self.keys) == 1 else None
        return next((key for key in self.keys if key.id == key_id), None)


def parse_key_set(content: bytes) -> KeySet:
    """Return the usable keys of a JSON Web Key Set.

    Keys for other purposes, and of kinds that the daemon does not take, are left out: an issuer
    may have them too. Raises ValueError if there is no usable key.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    rows = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise ValueError('it is no JSON Web Key Set: it has no list "keys"')
    if len(rows) > _MOST_KEYS:
        raise ValueError(f"it has more than {_MOST_KEYS} keys")
    keys = [key for row in rows if isinstance(row, dict) and (key := _key(row))]
    if not keys:
        raise ValueError(
            "it has no public key for signatures (RSA of 2048 bits or more, EC P-256, P-384 or"
            " P-521, Ed25519)"
        )
    return KeySet(tuple(keys))


def read_key_set(path: Path) -> KeySet:
    """Return the keys of a file. Raises AccessUnusable."""
    try:
        return parse_key_set(read("jwt_keys", path))
    except FileNotFoundError:
        raise AccessUnusable(f"cannot use jwt_keys {path}: there is no such file") from None
    except ValueError as mistake:
        raise AccessUnusable(f"cannot use jwt_keys {path}: {mistake}") from None


def _key(row: Mapping[str, Any]) -> SigningKey | None:
    if row.get("use", "sig") != "sig" or "d" in row or row.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    try:
        key = jwt.PyJWK(dict(row)).key
    except Exception:  # Whatever the library makes of an odd key, the daemon does without it.
        return None
    algorithms = _algorithms(key)
    if "alg" in row:
        algorithms = tuple(each for each in algorithms if each == row["alg"])
    return SigningKey(str(row.get("kid", "")), key, algorithms) if algorithms else None


def _algorithms(key: object) -> tuple[str, ...]:
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA if key.key_size >= _LEAST_RSA_BITS else ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (_CURVES[key.curve.name],) if key.curve.name in _CURVES else ()
    return ("EdDSA",) if isinstance(key, ed25519.Ed25519PublicKey) else ()
