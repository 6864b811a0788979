"""Verify JSON Web Tokens of one issuer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jwt

from wasmkilnd import errors
from wasmkilnd.access.key_set import KeySet
from wasmkilnd.access.policy import Claims
from wasmkilnd.errors import WasmkilnError

LEEWAY_S = 30
"""How far the clocks of issuer and daemon may differ."""
_LONGEST_SUBJECT = 512
_NO_SIGNATURE = "its signature or its content does not count; ask its issuer for a new one"
_WHY = (
    (
        jwt.InvalidAudienceError,
        "it is for another audience; ask its issuer for one for this daemon",
    ),
    (jwt.InvalidIssuerError, "it names another issuer than the daemon's"),
    (jwt.ImmatureSignatureError, "it is not valid yet: look at the clocks"),
)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens count."""

    name: str
    audiences: Sequence[str]


class VerifiedWebTokens:
    """Verifies tokens with the keys in force. Never waits."""

    def __init__(
        self, issuer: Issuer, keys: Callable[[], KeySet], unknown_key: Callable[[], None]
    ) -> None:
        """``unknown_key`` is called for a token that names a key that is not there."""
        self._issuer = issuer
        self._keys = keys
        self._unknown_key = unknown_key

    @property
    def keys(self) -> KeySet:
        """The keys in force: another object whenever they have changed."""
        return self._keys()

    def verify(self, token: str) -> tuple[str, Claims, float]:
        """Return the subject, all claims, and until when the token counts, in Unix seconds.

        Raises CREDENTIALS_INVALID.
        """
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # The text is a stranger's, and the library has many errors.
            raise _refused("malformed", "it is no JSON Web Token") from None
        key_id = header.get("kid")
        key = self._keys().find(key_id if isinstance(key_id, str) else None)
        if key is None:
            self._unknown_key()
            raise _refused("untrusted", "the daemon does not know the key that it names")
        if "crit" in header:
            raise _refused("malformed", "it has critical extensions, and the daemon knows none")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=list(self._issuer.audiences),
                issuer=self._issuer.name,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            until_s = float(claims["exp"]) + LEEWAY_S
        except jwt.ExpiredSignatureError:
            # The library checks the signature first: who reads this has a token of the issuer.
            raise _refused("expired", "it has expired; ask its issuer for a new one") from None
        except jwt.MissingRequiredClaimError as failure:
            raise _refused("untrusted", f"it lacks the claim {failure.claim}") from None
        except Exception as failure:
            why = next((text for kind, text in _WHY if isinstance(failure, kind)), _NO_SIGNATURE)
            raise _refused("untrusted", why) from None
        subject = claims["sub"]
        if not (isinstance(subject, str) and subject.isprintable() and subject):
            raise _refused("malformed", "its subject is not a plain text")
        if len(subject) > _LONGEST_SUBJECT:
            raise _refused("malformed", "its subject is too long")
        return subject, claims, until_s


def _refused(cause: str, why: str) -> WasmkilnError:
    return errors.credentials_invalid(cause, f"cannot accept your token: {why}")
