"""Make a RedisServer of a URL: the one place that knows all kinds of Redis."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, ResponseError

from wasmkilnd.cache.redis.cluster import ClusterServer
from wasmkilnd.cache.redis.replies import (
    WatchedConnection,
    WatchedSocketConnection,
    WatchedSSLConnection,
)
from wasmkilnd.cache.redis.sentinel import SentinelServer
from wasmkilnd.cache.redis.server import RedisServer, SingleServer
from wasmkilnd.cache.redis.upstash_rest import UpstashRestServer
from wasmkilnd.redis_address import RedisAddress, RedisKind

CLIENT_NAME = "wasmkiln"

# Large reads take half the time of redis-py's default of 32 KiB (docs/explanation/performance.md).
_READ_BYTES = 1024 * 1024
_MAX_CONNECTIONS = 32
# A node of a cluster must time out before the whole call does: else one dead node would pass
# for an outage of the whole cluster.
_NODE_SHARE = 0.75
_AUTH_UNKNOWN = re.compile(r"unknown command ['`]?AUTH\b", re.IGNORECASE)


class AccessUnusable(ValueError):  # noqa: N818 - reads as what it is
    """A file that the connection to Redis needs cannot be used. The text holds no secret."""


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Credentials and certificates for a server, as far as its URL does not hold them."""

    ca_file: str = ""
    """A file of certificates to trust instead of the system's authorities."""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """A file that is read for each connection, so that the password can change."""
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)


NO_ACCESS = RedisAccess()


def connect(
    url: str,
    access: RedisAccess = NO_ACCESS,
    *,
    connect_timeout_s: float = 1.0,
    timeout_s: float = 10.0,
) -> RedisServer:
    """Return a server for ``url``; it connects when it is first used.

    ``timeout_s`` bounds each write and each read by itself. No command is retried. Raises
    BadRedisUrl and AccessUnusable.
    """
    address = RedisAddress.parse(url)
    _check_files(access)
    options = _options(address, access, connect_timeout_s, timeout_s)
    match address.kind:
        case RedisKind.SENTINEL:
            return _sentinel(address, access, options)
        case RedisKind.CLUSTER:
            node_options = _options(
                address, access, connect_timeout_s * _NODE_SHARE, timeout_s * _NODE_SHARE
            )
            return ClusterServer(
                address.hosts,
                lambda node: SingleServer(_client(address, node_options, node)),
            )
        case RedisKind.REST:
            return UpstashRestServer(
                f"{address.origin}{address.path}",
                _password(address, access),
                timeout_s=timeout_s,
                connect_timeout_s=connect_timeout_s,
                max_connections=_MAX_CONNECTIONS,
                tls=ssl.create_default_context(cafile=access.ca_file or None),
            )
    return SingleServer(_client(address, options))


def _client(
    address: RedisAddress, options: dict[str, Any], node: tuple[str, int] | None = None
) -> Redis:
    where: dict[str, Any]
    if address.kind is RedisKind.SOCKET:
        kind: type[AbstractConnection] = WatchedSocketConnection
        where = {"path": address.path}
    else:
        kind = WatchedSSLConnection if address.tls else WatchedConnection
        host, port = node or address.hosts[0]
        where = {"host": host, "port": port}
    return Redis.from_pool(BlockingConnectionPool(connection_class=kind, **where, **options))


def _sentinel(
    address: RedisAddress, access: RedisAccess, options: dict[str, Any]
) -> SentinelServer:
    theirs = {
        name: value
        for name, value in options.items()
        if name.startswith(("socket_", "ssl_")) or name in ("retry", "protocol")
    }
    if access.sentinel_password:
        theirs["password"] = access.sentinel_password
        theirs["username"] = access.sentinel_user or None
    return SentinelServer(address.hosts, address.service, options, theirs, tls=address.tls)


def _options(
    address: RedisAddress, access: RedisAccess, connect_timeout_s: float, timeout_s: float
) -> dict[str, Any]:
    """Return the options of a pool and of its connections."""
    options: dict[str, Any] = {
        "max_connections": _MAX_CONNECTIONS,
        "timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": timeout_s,
        "socket_read_size": _READ_BYTES,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        # What every server and proxy speaks; version 3 gives this tier nothing.
        "protocol": 2,
        "redis_connect_func": _introduce,
    }
    if address.db:
        options["db"] = address.db
    if address.user or address.password or access.password or access.password_file:
        options["credential_provider"] = _Credentials(address.user, _password(address, access))
    if address.tls:
        options |= address.tls_options
        if access.ca_file:
            options["ssl_ca_certs"] = access.ca_file
    return options


class _Credentials(CredentialProvider):
    def __init__(self, user: str, password: Callable[[], str]) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password()
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _password(address: RedisAddress, access: RedisAccess) -> Callable[[], str]:
    if not access.password_file:
        password = address.password or access.password
        return lambda: password
    last = ""

    def read() -> str:
        nonlocal last
        # While the file is being replaced, use the previous password.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            last = Path(access.password_file).read_text().strip()
        return last

    return read


def _check_files(access: RedisAccess) -> None:
    for setting, path in (
        ("redis_password_file", access.password_file),
        ("redis_ca_file", access.ca_file),
    ):
        if not path:
            continue
        try:
            Path(path).read_text()
            if path == access.ca_file:
                ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            raise AccessUnusable(f"{setting}: {path} is not a PEM certificate") from None
        except OSError as failure:
            raise AccessUnusable(f"{setting}: {path}: {failure.strerror}") from None
        except UnicodeDecodeError:
            raise AccessUnusable(f"{setting}: {path} is not UTF-8 text") from None


async def _introduce(connection: AbstractConnection) -> None:
    try:
        await connection.on_connect()
    except ResponseError as refusal:
        if not _AUTH_UNKNOWN.search(str(refusal)):
            raise
        # The server knows no AUTH, and its error quotes the password.
        raise AuthenticationError from None
    await connection.send_command("CLIENT", "SETNAME", CLIENT_NAME)
    # A name is a courtesy to operators; some services and ACLs refuse CLIENT.
    with contextlib.suppress(ResponseError):
        await connection.read_response()
