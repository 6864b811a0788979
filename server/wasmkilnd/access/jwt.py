"""JSON Web Tokens of one issuer: its public keys, of which only safe ones are used; and checks.

Nothing here waits for the issuer while a call does: ``AccessGuard.follow_keys`` fetches keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import aiohttp
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from wasmkilnd import errors
from wasmkilnd.access.policy import Claims, Jwt
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.files.operator_files import CannotUse, defect_in, read

log = structlog.get_logger("wasmkilnd")

# How far the clocks of issuer and daemon may differ.
LEEWAY_S = 30
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MOST_BYTES = 1024 * 1024
_MOST_KEYS = 100
_LONGEST_SUBJECT = 512
_RSA = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
_SAFE = {*_RSA, "ES256", "ES384", "ES512", "EdDSA"}
# The library checks the signature first: who reads these has a token of the issuer.
_OF_ISSUER = (
    *(jwt.InvalidAudienceError, jwt.InvalidIssuerError),
    *(jwt.ImmatureSignatureError, jwt.MissingRequiredClaimError),
)


# By id.
Keys: TypeAlias = Mapping[str, jwt.PyJWK]


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens count, and with which keys. A reload, or new keys, make another.

    - ``url``: where the keys come from; empty for a file.
    """

    name: str
    audiences: Sequence[str]
    keys: Keys = field(default_factory=dict)
    url: str = ""

    def verify(self, token: str, unknown_key: Callable[[], None]) -> tuple[str, Claims, float]:
        """Return the subject, all claims, and until when the token counts, in Unix seconds.

        Call ``unknown_key`` for a token that names a key that is not there. Raises
        CREDENTIALS_INVALID.
        """
        try:
            header: Mapping[str, str] = jwt.get_unverified_header(token)
        except Exception:  # The text is a stranger's, and the library has many errors.
            raise refused("malformed", "it is no JSON Web Token") from None
        # A token may leave the id out where there is one key.
        only = next(iter(self.keys)) if len(self.keys) == 1 else ""
        key = self.keys.get(header.get("kid", only))
        if key is None:
            unknown_key()
            raise refused("untrusted", "the daemon does not know the key that it names")
        if "crit" in header:
            raise refused("malformed", "it has critical extensions, and the daemon knows none")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=_algorithms(key),
                audience=list(self.audiences),
                issuer=self.name,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            until_s = float(claims["exp"]) + LEEWAY_S
        except jwt.ExpiredSignatureError:
            raise refused("expired", "it has expired; ask its issuer for a new one") from None
        except _OF_ISSUER as failure:
            raise refused("untrusted", str(failure)) from None
        except Exception:
            why = "its signature or its content does not count; ask its issuer for a new one"
            raise refused("untrusted", why) from None
        subject = str(claims["sub"])
        if not (subject.isprintable() and 0 < len(subject) <= _LONGEST_SUBJECT):
            raise refused("malformed", "its subject is not a plain text, or too long")
        return subject, claims, until_s


def read_issuer(jwt: Jwt | None) -> Issuer | None:
    """Return whose tokens count, without the keys of a URL. Raises CannotUse."""
    if jwt is None:
        return None
    if not (file := jwt.file):
        return Issuer(jwt.issuer, jwt.audience, url=jwt.keys)
    try:
        return Issuer(jwt.issuer, jwt.audience, parse_keys(read("jwt keys", file)))
    except ValueError as mistake:
        raise CannotUse(f"cannot use jwt keys {file}: {mistake}") from None


def parse_keys(content: bytes) -> Keys:
    """Return the usable keys of a JSON Web Key Set.

    Keys for other purposes, and of kinds that the daemon does not take, are left out: an issuer
    may have them too. Raises ValueError if there is no usable key.
    """
    try:
        found = jwt.PyJWKSet.from_json(content.decode()).keys
    except Exception:  # The library has many errors.
        raise ValueError("it is no JSON Web Key Set, or has no key that can be used") from None
    keys: dict[str, jwt.PyJWK] = {}
    for key in filter(_is_safe, found):
        keys.setdefault(str(key.key_id or ""), key)
    if not keys or len(found) > _MOST_KEYS:
        raise ValueError(
            "it needs 1 to 100 keys, and a public one for signatures: RSA of 2048 bits or more, EC"
            " P-256, P-384 or P-521, Ed25519"
        )
    return keys


def _algorithms(key: jwt.PyJWK) -> list[str]:
    """Return what may sign with a key: the library takes RS256 where an RSA key names none."""
    if isinstance(key.key, rsa.RSAPublicKey) and "alg" not in key._jwk_data:
        return sorted(_RSA)
    return [key.algorithm_name]


def _is_safe(key: jwt.PyJWK) -> bool:
    public = isinstance(key.key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
    if isinstance(key.key, rsa.RSAPublicKey):
        public = key.key.key_size >= 2048
    return public and key.public_key_use in (None, "sig") and key.algorithm_name in _SAFE


async def fetch_keys(url: str) -> Keys:
    """Return the keys that a URL has now, after 10 seconds at the latest.

    If it has none, or cannot be read, log why and return none.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            # A redirection could lead to a place without TLS, or inside this network.
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"the server answered {answer.status}")
            content = b""
            async for part in answer.content.iter_chunked(64 * 1024):
                content += part
                if len(content) > _MOST_BYTES:
                    raise ValueError("it is larger than 1 MiB")
        return await asyncio.to_thread(parse_keys, content)
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as failure:
        why = str(failure) or "it took more than 10 seconds"
    except Exception as defect:  # the next fetch must not depend on it
        why = defect_in(defect)
    why = f"cannot fetch jwt keys {url.partition('?')[0]}: {why}"
    log.error("cannot fetch jwt keys: the old ones stay", cause=why)
    return {}


def refused(cause: str, why: str) -> WasmkilnError:
    """Return why a token does not count."""
    return errors.credentials_invalid(cause, f"cannot accept your token: {why}")
