"""Read a Redis URL strictly, and show it without its secrets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, unquote


class BadRedisUrl(ValueError):  # noqa: N818 - reads as what it is
    """The daemon cannot use the URL. The text says why, and never holds its credentials."""


class RedisKind(Enum):
    """What is behind a URL."""

    SERVER = "server"
    SOCKET = "socket"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class _Scheme:
    kind: RedisKind
    tls: bool
    port: int
    form: str


_SCHEMES: Final[Mapping[str, _Scheme]] = {
    "redis": _Scheme(RedisKind.SERVER, False, 6379, "redis://[user:password@]host[:port][/db]"),
    "rediss": _Scheme(RedisKind.SERVER, True, 6379, "rediss://[user:password@]host[:port][/db]"),
    "unix": _Scheme(
        RedisKind.SOCKET, False, 0, "unix://[user:password@]/path/to/redis.sock[?db=1]"
    ),
    "redis+sentinel": _Scheme(
        RedisKind.SENTINEL,
        False,
        26379,
        "redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]",
    ),
    "rediss+sentinel": _Scheme(
        RedisKind.SENTINEL,
        True,
        26379,
        "rediss+sentinel://[user:password@]host[:port],host[:port]/service[/db]",
    ),
    "redis+cluster": _Scheme(
        RedisKind.CLUSTER, False, 6379, "redis+cluster://[user:password@]host[:port],host[:port]"
    ),
    "rediss+cluster": _Scheme(
        RedisKind.CLUSTER, True, 6379, "rediss+cluster://[user:password@]host[:port],host[:port]"
    ),
    "https": _Scheme(RedisKind.REST, True, 443, "https://[:token@]host[:port]"),
    "http": _Scheme(RedisKind.REST, False, 80, "http://[:token@]localhost[:port]"),
}
SCHEMES: Final = ", ".join(f"{name}://" for name in _SCHEMES)

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_ENCODE = "percent-encode special characters of user and password"
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SERVICE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_DB = re.compile(r"[0-9]{1,6}")
# Python's own parser takes one host only, and from 3.13.5 on no IPv6 address among several.
_PARTS = re.compile(
    r"[^:/?]+://(?P<authority>(?:(?![/?])[!-~])*)(?P<path>(?:/[^?\x00-\x20\x7f]*)?)"
    r"(?:\?(?P<query>[^\x00-\x20\x7f]*))?"
)
_CERT_REQS = ("required", "optional", "none")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The parts of a Redis URL. Text and repr hold neither user nor password."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    """The path of the socket, or the prefix of every path of a REST service."""
    service: str = ""
    """The name under which Sentinels know the primary."""
    db: int = 0
    user: str = ""
    password: str = ""
    """The token, for a REST service."""
    tls_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By redis-py's names: ``ssl_ca_certs`` and others."""

    @property
    def kind(self) -> RedisKind:
        """What is behind the URL."""
        return _SCHEMES[self.scheme].kind

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return _SCHEMES[self.scheme].tls

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read ``url``. Raises BadRedisUrl."""
        name = url.partition("://")[0]
        scheme = _SCHEMES.get(name)
        if scheme is None or "://" not in url:
            raise BadRedisUrl(f"it has no known scheme: write one of {SCHEMES}")
        if "#" in url:
            raise BadRedisUrl(f"it contains a '#': {_ENCODE}")
        parts = _PARTS.fullmatch(url)
        if parts is None:
            raise BadRedisUrl(f"it is not a valid URL: {_ENCODE}; {_expected(scheme)}")
        authority, path, query = parts["authority"], parts["path"], parts["query"] or ""
        if "@" in path + query:  # What looks like a path is the rest of a password.
            raise BadRedisUrl(f"it contains an '@' after its host: {_ENCODE} ('@' is %40)")
        credentials, _, hosts = authority.rpartition("@")
        user, _, password = credentials.partition(":")
        options = _options(query, scheme)
        path, service, db = _path(path, options.pop("db", ""), scheme)
        address = cls(
            scheme=name,
            hosts=_hosts(hosts, scheme),
            path=path,
            service=service,
            db=db,
            user=unquote(user),
            password=unquote(password),
            tls_options=MappingProxyType(options),
        )
        if scheme.kind is RedisKind.REST:
            _check_rest(address)
        return address

    @property
    def origin(self) -> str:
        """Scheme and hosts."""
        return f"{self.scheme}://" + ",".join(_written(host, port) for host, port in self.hosts)

    def __str__(self) -> str:
        service = f"/{self.service}" if self.service else ""
        db = f"{'?db=' if self.kind is RedisKind.SOCKET else '/'}{self.db}" if self.db else ""
        return f"{self.origin}{self.path}{service}{db}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"


def _expected(scheme: _Scheme) -> str:
    return f"write {scheme.form}"


def _options(query: str, scheme: _Scheme) -> dict[str, str]:
    # The daemon sets all others itself: decode_responses would change the result of every read.
    allowed = {"db"} if scheme.kind in (RedisKind.SERVER, RedisKind.SOCKET) else set()
    if scheme.tls and scheme.kind is not RedisKind.REST:
        allowed |= set(_TLS_OPTIONS)
    options = dict(parse_qsl(query, keep_blank_values=True))
    if options.keys() - allowed or (query and not options):
        takes = ", ".join(sorted(allowed)) or "none"
        raise BadRedisUrl(f"it has an option that such a URL cannot have (it can have: {takes})")
    if options.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise BadRedisUrl(f"its ssl_cert_reqs is not one of {', '.join(_CERT_REQS)}")
    return options


def _path(path: str, db_option: str, scheme: _Scheme) -> tuple[str, str, int]:
    """Return the path, the service and the database of a URL's path and its option ``db``."""
    service = ""
    if scheme.kind is RedisKind.SOCKET:
        if not path.strip("/"):
            raise BadRedisUrl("it names no socket: write unix:///path/to/redis.sock")
        return unquote(path), "", _database(db_option, scheme)
    if scheme.kind is RedisKind.REST:
        return path.rstrip("/"), "", 0
    rest = path.strip("/")
    if scheme.kind is RedisKind.SENTINEL:
        service, _, rest = rest.partition("/")
        if not _SERVICE.fullmatch(service):
            raise BadRedisUrl(
                f"it does not say which primary the Sentinels watch: {_expected(scheme)}"
            )
    if scheme.kind is RedisKind.CLUSTER and rest:
        raise BadRedisUrl(f"it has a path, and a cluster has no databases: {_expected(scheme)}")
    return "", service, _database(rest or db_option, scheme)


def _database(text: str, scheme: _Scheme) -> int:
    # redis-py ignores a database that is not a number and takes 0, which others may use.
    if text and not _DB.fullmatch(text):
        raise BadRedisUrl(
            f"its path is not the number of a database: {_expected(scheme)}, and {_ENCODE}"
        )
    return int(text or 0)


def _hosts(text: str, scheme: _Scheme) -> tuple[tuple[str, int], ...]:
    if scheme.kind is RedisKind.SOCKET:
        if text:
            raise BadRedisUrl("it names no socket: write unix:///path/to/redis.sock")
        return ()
    hosts = tuple(_host(each, scheme) for each in text.split(","))
    if len(hosts) > 1 and scheme.kind not in (RedisKind.SENTINEL, RedisKind.CLUSTER):
        raise BadRedisUrl(
            "it names several hosts, which only +sentinel:// and +cluster:// URLs do:"
            f" {_expected(scheme)}"
        )
    return hosts


def _host(text: str, scheme: _Scheme) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^]]*)](?::(.*))?", text, re.DOTALL)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
        valid = isinstance(_ip(host), ipaddress.IPv6Address)
    else:
        host, colon, after = text.partition(":")
        port = after if colon else None
        valid = _HOST_NAME.fullmatch(host) is not None
    if not host:
        raise BadRedisUrl(f"it names no host: {_expected(scheme)}")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise BadRedisUrl(f"its port is not from 1 to 65535: check it, and {_ENCODE}")
    if not valid:
        raise BadRedisUrl(f"it is not a valid URL: {_ENCODE}; {_expected(scheme)}")
    return host, int(port) if port else scheme.port


def _check_rest(address: RedisAddress) -> None:
    if address.user and not address.password:
        raise BadRedisUrl("it has the token in place of the user: write https://:token@host")
    [(host, _)] = address.hosts
    ip = _ip(host)
    local = ip.is_loopback if ip else host.lower() == "localhost"
    if not address.tls and not local:
        raise BadRedisUrl("http:// would send the token unencrypted: write https://")


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
