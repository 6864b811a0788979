"""Where Redis is: a URL that may hold a password, and never shows it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import SecretStr

EMBEDDED = ""
"""The value that asks for the embedded server."""
NONE = "none"
"""The value that asks for no Redis tier."""

_SCHEMES = ("redis", "rediss", "unix")
# Up to the last "@": a password may hold "/", "@" and "?" that somebody forgot to encode.
_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)
_QUERY_CREDENTIALS = re.compile(r"([?&](?:username|password)=)[^&#]*", re.IGNORECASE)


class RedisUrl(SecretStr):
    """A Redis URL; its text and repr hide user and password."""

    def _display(self) -> str:
        return mask(self.get_secret_value())


def mask(url: str) -> str:
    """Answer ``url`` with ``***`` for user and password."""
    return _QUERY_CREDENTIALS.sub(r"\1***", _CREDENTIALS.sub("://***:***@", url))


def parse_redis_url(value: object) -> str:
    """Answer the URL, or the word that stands for one. Raises ValueError, which holds no secret."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        raise ValueError("it takes a text: " + _ALLOWED)
    url = value.strip()
    if url in (EMBEDDED, NONE):
        return url
    # From None, all of them: urllib's own messages quote the password.
    try:
        parts = urlsplit(url)
        port_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError(
            "it is no valid URL: check the port (1 to 65535), and percent-encode special"
            " characters of the password"
        ) from None
    if parts.scheme not in _SCHEMES or "://" not in url:
        raise ValueError("it has no scheme that is known here: it takes " + _ALLOWED)
    if not port_valid:
        raise ValueError("its port is not from 1 to 65535")
    if parts.fragment:
        raise ValueError("it has a '#': percent-encode special characters of the password")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("it names no socket: write unix:///path/to/redis.sock")
        return url
    if not parts.hostname:
        raise ValueError("it names no host: write redis://host:port/db")
    # redis-py passes over a database that is no number and takes 0, which is somebody else's.
    if parts.path not in ("", "/") and not re.fullmatch(r"/[0-9]{1,6}", parts.path):
        raise ValueError(
            "its path is not the number of a database: write redis://host:port/db, and"
            " percent-encode special characters of the password"
        )
    return url


_ALLOWED = "redis://, rediss:// or unix:// URLs, 'none' for memory only, '' for the embedded server"
