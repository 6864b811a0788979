"""The setting that says where Redis is: a URL that may hold a password, and never shows it."""

from __future__ import annotations

import re

from pydantic import SecretStr

from wasmkilnd.redis_address import SCHEMES, RedisAddress, RedisKind

EMBEDDED = ""
"""The value that asks for the embedded server."""
NONE = "none"
"""The value that asks for no Redis tier."""

# Up to the last "@": a password may hold "/", "@" and "?" that were not percent-encoded.
_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)


class RedisUrl(SecretStr):
    """A Redis URL; its text and repr hide user and password."""

    def _display(self) -> str:
        return mask(self.get_secret_value())


def mask(url: str) -> str:
    """Return ``url`` with ``***`` for user and password."""
    return _CREDENTIALS.sub("://***:***@", url)


def parse_redis_url(value: object) -> str:
    """Return the URL, or the word in its place. Raises ValueError, which holds no secret."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        raise ValueError("expected a string: " + _ALLOWED)
    url = value.strip()
    if url not in (EMBEDDED, NONE):
        RedisAddress.parse(url)
    return url


def redis_conflict(
    url: str, *, password: bool, password_file: bool, ca_file: bool
) -> tuple[str, str] | None:
    """Return which setting contradicts the URL or another one, and why; None if none does."""
    if url in (EMBEDDED, NONE):
        return None
    address = RedisAddress.parse(url)
    if bool(address.password) + password + password_file > 1:
        return (
            "redis_password_file" if password_file else "redis_password",
            "the password is given twice: keep it in one of redis_url, redis_password and"
            " redis_password_file",
        )
    if ca_file and not address.tls:
        return (
            "redis_ca_file",
            f"it is set, but {address.scheme}:// is not encrypted: leave it out, or use TLS",
        )
    if address.kind is RedisKind.REST and not (address.password or password or password_file):
        return (
            "redis_url",
            f"{address.scheme}:// needs a token: set UPSTASH_REDIS_TOKEN, redis_password or"
            " redis_password_file, or write https://:token@host",
        )
    return None


_ALLOWED = f"a URL ({SCHEMES}), 'none' for memory only, '' for the embedded server"
