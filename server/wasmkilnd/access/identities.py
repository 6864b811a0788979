"""From credentials to identities, with a bounded memory of those that were checked."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from wasmkilnd import errors
from wasmkilnd.access.certificates import certificate_name
from wasmkilnd.access.policy import Claims, Policy
from wasmkilnd.access.tokens import PREFIX, Tokens
from wasmkilnd.model import Credentials, Entrance, Identity, Transport

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ANONYMOUS = "anonymous"
_REMEMBERED = 4096
_BEARER = re.compile(r"bearer +([!-~]+) *", re.IGNORECASE)
_FOREVER = float("inf")


class WebTokens(Protocol):
    """Verifies JSON Web Tokens."""

    @property
    def keys(self) -> object:
        """The keys in force: another object whenever they have changed."""
        ...

    def verify(self, token: str) -> tuple[str, Claims, float]:
        """Return the subject, all claims, and until when the token counts, in Unix seconds.

        Raises CREDENTIALS_INVALID.
        """
        ...


class Identities:
    """The identities of one policy, with its tokens and keys. For one event loop.

    A reload makes another: nothing that was remembered outlives what it was checked against.
    """

    def __init__(
        self,
        policy: Policy,
        tokens: Tokens | None = None,
        client_cas: Callable[[], Sequence[Certificate]] = tuple,
        web_tokens: WebTokens | None = None,
    ) -> None:
        """``client_cas`` returns another object whenever the CAs in force have changed."""
        self._policy = policy
        self._tokens = tokens or Tokens()
        self._client_cas = client_cas
        self._web_tokens = web_tokens
        self._cas_of_memory = client_cas()
        self._keys_of_memory = web_tokens.keys if web_tokens else None
        # By the SHA-256 of the token: it never stays in memory, and equal ones are found in a time
        # that tells nothing.
        self._by_token: dict[bytes, tuple[Identity, float]] = {}
        self._by_certificate: dict[bytes, tuple[Identity, float]] = {}
        self._sockets: dict[str, Identity] = {}
        anonymous = policy.identity(ANONYMOUS)
        self._anonymous = anonymous if policy.names(ANONYMOUS) else None

    def of(self, entrance: Entrance, credentials: Credentials) -> Identity:
        """Return who calls. A token counts before a certificate, and both before a socket.

        Raises CREDENTIALS_MISSING and CREDENTIALS_INVALID.
        """
        of_certificate = None
        if credentials.certificate:
            # Also beside a token: a connection whose certificate does not count any more carries
            # no calls.
            of_certificate = self._of_certificate(credentials.certificate)
        elif entrance.transport is Transport.MTLS:
            raise errors.credentials_missing()
        if credentials.authorization:
            return self._of_authorization(credentials.authorization)
        if of_certificate:
            return of_certificate
        if entrance.transport is Transport.UNIX:
            return self._of_socket(entrance.address)
        if self._anonymous:
            return self._anonymous
        raise errors.credentials_missing(certificates=bool(self._client_cas()))

    def _of_certificate(self, pem: bytes) -> Identity:
        cas = self._client_cas()
        if cas is not self._cas_of_memory:
            self._cas_of_memory = cas
            self._by_certificate.clear()
        # By its digest: with what the peer sent beside it, it may have a hundred KiB.
        key = hashlib.sha256(pem).digest()
        known = self._by_certificate.get(key)
        if known and time.time() < known[1]:
            return known[0]
        name, until_s = certificate_name(pem, cas)
        identity = self._policy.identity(name)
        _remember(self._by_certificate, key, identity, until_s)
        return identity

    def _of_authorization(self, authorization: str) -> Identity:
        if self._web_tokens and self._web_tokens.keys is not self._keys_of_memory:
            self._keys_of_memory = self._web_tokens.keys
            self._by_token.clear()
        key = hashlib.sha256(authorization.encode("utf-8", "replace")).digest()
        known = self._by_token.get(key)
        if known and time.time() < known[1]:
            return known[0]
        self._by_token.pop(key, None)
        shape = _BEARER.fullmatch(authorization)
        if not shape:
            raise errors.credentials_invalid(
                "malformed", "cannot read the metadata `authorization`: write `Bearer TOKEN`"
            )
        identity, until_s = self._of_token(shape[1])
        _remember(self._by_token, key, identity, until_s)
        return identity

    def _of_token(self, text: str) -> tuple[Identity, float]:
        if not text.startswith(PREFIX) and text.count(".") == 2 and self._web_tokens:
            subject, claims, until_s = self._web_tokens.verify(text)
            return self._policy.identity(f"jwt:{subject}", claims), until_s
        token = self._tokens.find(text)
        if token is None:
            raise errors.credentials_invalid(
                "unknown",
                "cannot accept your token: the daemon does not know it; ask its operator for a"
                " new one",
            )
        if token.expired(time.time()):
            raise errors.credentials_invalid(
                "expired", "cannot accept your token: it has expired; ask for a new one"
            )
        identity = self._policy.identity(
            f"token:{token.name}", own_roles=token.roles, own_namespace=token.namespace
        )
        return identity, _FOREVER if token.expires_s is None else token.expires_s

    def _of_socket(self, address: str) -> Identity:
        """Return who calls through a Unix socket. All are remembered: the settings name them."""
        identity = self._sockets.get(address)
        if identity is None:
            identity = self._sockets[address] = self._policy.identity(address)
        return identity


def _remember(
    memory: dict[bytes, tuple[Identity, float]], key: bytes, identity: Identity, until_s: float
) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = identity, until_s
