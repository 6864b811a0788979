"""Building the Redis client from a URL."""

from __future__ import annotations

import contextlib
import urllib.parse

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from wasmkilnd.cache.server import SingleServer

CLIENT_NAME = "wasmkiln"

# Large reads take half the time of redis-py's default of 32 KiB (docs/performance.md).
_READ_BYTES = 1024 * 1024
_MAX_CONNECTIONS = 32

# What a URL may choose beside address and credentials. All else is ours: an
# option such as decode_responses would change what every read answers.
_TLS_OPTIONS = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
)
_OPTIONS = {
    "redis": frozenset({"db"}),
    "rediss": frozenset({"db"}) | _TLS_OPTIONS,
    "unix": frozenset({"db"}),
}


class BadRedisUrl(ValueError):  # noqa: N818 - reads as what it is
    """The URL cannot be used. The text says why, and never holds the URL's credentials."""


def connect(
    url: str, *, connect_timeout_s: float = 1.0, timeout_s: float = 10.0, ca_file: str = ""
) -> SingleServer:
    """Answer the server at ``url``, to which it connects when it is first used.

    ``redis://``, ``rediss://`` (``ca_file`` is trusted instead of the system's
    authorities) and ``unix://``, each with user, password and database.
    ``timeout_s`` bounds each write and each read by itself. Nothing is tried
    again behind the caller's back. Raises BadRedisUrl.
    """
    tls = {"ssl_ca_certs": ca_file} if ca_file and _scheme_of(url) == "rediss" else {}
    _check_options(url)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=timeout_s,
            socket_read_size=_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            # What every server and proxy speaks; version 3 gives this tier nothing.
            protocol=2,
            redis_connect_func=_introduce,
            **tls,
        )
    except ValueError:
        # Its own text may quote a part of the password as "port".
        raise BadRedisUrl(
            "the Redis URL is malformed: expected redis://[user:password@]host[:port][/db]"
            " with / @ : # ? in user and password percent-encoded"
        ) from None
    return SingleServer(Redis.from_pool(pool))


def masked(url: str) -> str:
    """Answer ``url`` without user, password and options, fit for logs."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(malformed URL)"
    if "@" in parts.path or "@" in host:
        # A / inside the password: what looks like a path holds its rest.
        return f"{parts.scheme}://(malformed)"
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _scheme_of(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme not in _OPTIONS:
        raise BadRedisUrl("the Redis URL must begin with redis://, rediss:// or unix://")
    return scheme


def _check_options(url: str) -> None:
    scheme = _scheme_of(url)
    query = urllib.parse.urlsplit(url).query if "?" in url else ""
    for name in urllib.parse.parse_qs(query, keep_blank_values=True):
        if name not in _OPTIONS[scheme]:
            allowed = ", ".join(sorted(_OPTIONS[scheme]))
            raise BadRedisUrl(
                f"the Redis URL has an option that {scheme}:// does not take here"
                f" (allowed: {allowed})"
            )


async def _introduce(connection: AbstractConnection) -> None:
    await connection.on_connect()
    await connection.send_command("CLIENT", "SETNAME", CLIENT_NAME)
    # A name is a courtesy to operators; some services and ACLs refuse CLIENT.
    with contextlib.suppress(ResponseError):
        await connection.read_response()
