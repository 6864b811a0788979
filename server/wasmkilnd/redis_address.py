"""Read a Redis URL strictly, and show it without its secrets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, unquote


class BadRedisUrl(ValueError):  # noqa: N818 - reads as what it is
    """The daemon cannot use the URL. The text says why, and never holds its credentials."""


class RedisKind(Enum):
    """What is behind a URL; its value says how to write one, after the scheme."""

    SERVER = "[user:password@]host[:port][/db]"
    SOCKET = "[user:password@]/path/to/redis.sock[?db=1]"
    SENTINEL = "[user:password@]host[:port],host[:port]/service[/db][?sentinel_password=password]"
    CLUSTER = "[user:password@]host[:port],host[:port]"
    REST = "[:token@]host[:port]"


# By scheme: what is behind it, whether the connection is encrypted, and the port.
_SCHEMES: Final[Mapping[str, tuple[RedisKind, bool, int]]] = {
    "redis": (RedisKind.SERVER, False, 6379),
    "rediss": (RedisKind.SERVER, True, 6379),
    "unix": (RedisKind.SOCKET, False, 0),
    "redis+sentinel": (RedisKind.SENTINEL, False, 26379),
    "rediss+sentinel": (RedisKind.SENTINEL, True, 26379),
    "redis+cluster": (RedisKind.CLUSTER, False, 6379),
    "rediss+cluster": (RedisKind.CLUSTER, True, 6379),
    "https": (RedisKind.REST, True, 443),
    "http": (RedisKind.REST, False, 80),
}
SCHEMES: Final = ", ".join(f"{name}://" for name in _SCHEMES)

_TLS_OPTIONS = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
_OPTIONS = {
    RedisKind.SERVER: {"db"},
    RedisKind.SOCKET: {"db"},
    RedisKind.SENTINEL: {"sentinel_user", "sentinel_password"},
}
_CERT_REQS = ("required", "optional", "none")
# What may stand between the credentials and the options. No "@": a password that holds a "/" or a
# "?" makes what follows look like a path.
_AFTER: Final[Mapping[RedisKind, str]] = {
    RedisKind.SERVER: r"(?P<hosts>[^/?,]+)(?:/(?P<db>[0-9]{0,6}))?",
    RedisKind.SOCKET: r"(?P<path>/[^?@]*[^?@/][^?@]*)",
    RedisKind.SENTINEL: r"(?P<hosts>[^/?]+)/(?P<service>[^/?@]{1,128})(?:/(?P<db>[0-9]{0,6}))?",
    RedisKind.CLUSTER: r"(?P<hosts>[^/?]+)/?",
    RedisKind.REST: r"(?P<hosts>[^/?,]+)(?P<path>[^?@]*)",
}
_URL = (
    r"(?=[^\x00-\x20\x7f#]+\Z)(?:(?P<user>[^:/?]*)(?::(?P<password>[^/?]*))?@)?"
    r"%s(?:\?(?P<query>[^@]*))?"
)
_HOST = re.compile(
    r"(?:\[([0-9A-Za-z:.%]*:[0-9A-Za-z:.%]*)]|([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?))"
    r"(?::([0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The parts of a Redis URL. Text and repr hold neither user nor password.

    ``path`` is that of a socket, or the prefix of every path of a REST service, whose token is the
    password. Sentinels know the primary as ``service``, and take a user and a password of their
    own. ``tls_options`` go by redis-py's names, ``ssl_ca_certs`` and others.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    user: str = ""
    password: str = ""
    sentinel: tuple[str, str] = ("", "")
    tls_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> RedisKind:
        """What is behind the URL."""
        return _SCHEMES[self.scheme][0]

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return _SCHEMES[self.scheme][1]

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read ``url``. Raises BadRedisUrl."""
        scheme, colon, rest = url.partition("://")
        if not colon or scheme not in _SCHEMES:
            raise BadRedisUrl(f"it has no known scheme: write one of {SCHEMES}")
        kind, tls, port = _SCHEMES[scheme]
        found = re.fullmatch(_URL % _AFTER[kind], rest)
        parts = found.groupdict("") if found else {}
        named = parts.get("hosts", "")
        hosts = tuple(host_and_port(each, port) for each in named.split(",")) if named else ()
        if not found or not all(host and 0 < at < 65536 for host, at in hosts):
            raise BadRedisUrl(
                f"it is not a valid URL: write {scheme}://{kind.value}, with ports from 1 to"
                " 65535, and percent-encode special characters of user and password ('@' is %40)"
            )
        options = _options(parts["query"], kind, tls=tls and kind is not RedisKind.REST)
        database, path = options.pop("db", ""), parts.get("path", "")
        address = cls(
            scheme,
            hosts,
            path=unquote(path) if kind is RedisKind.SOCKET else path.rstrip("/"),
            service=parts.get("service", ""),
            db=int(parts.get("db") or database or 0),
            user=unquote(parts["user"]),
            password=unquote(parts["password"]),
            sentinel=(options.pop("sentinel_user", ""), options.pop("sentinel_password", "")),
            tls_options=options,
        )
        if kind is RedisKind.REST:
            if address.user and not address.password:
                raise BadRedisUrl(
                    "it has the token in place of the user: write https://:token@host"
                )
            if not tls and not is_local(hosts[0][0]):
                raise BadRedisUrl("http:// would send the token unencrypted: write https://")
        return address

    @property
    def origin(self) -> str:
        """Scheme and hosts."""
        hosts = ((f"[{host}]" if ":" in host else host, port) for host, port in self.hosts)
        return f"{self.scheme}://" + ",".join(f"{host}:{port}" for host, port in hosts)

    def __str__(self) -> str:
        service = f"/{self.service}" if self.service else ""
        db = f"{'?db=' if self.kind is RedisKind.SOCKET else '/'}{self.db}" if self.db else ""
        return f"{self.origin}{self.path}{service}{db}"

    def __repr__(self) -> str:
        return f"RedisAddress({self})"


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """Return what ``host:port`` or ``[v6]:port`` says, or ``port``; no host if it is malformed."""
    found = _HOST.fullmatch(text)
    v6, name, given = found.groups("") if found else ("", "", "")
    ip = ip_of(v6 or name)
    # A name without a letter is a mistyped IPv4 address.
    good = ip or re.search("[^0-9.]", name)
    return str(ip or name) if good else "", int(given or port)


def _options(query: str, kind: RedisKind, *, tls: bool) -> dict[str, str]:
    # The daemon sets all others itself: decode_responses would change the result of every read.
    allowed = _OPTIONS.get(kind, set()) | (_TLS_OPTIONS if tls else set())
    # A plus stands for itself, as in the rest of a URL: passwords in base64 have it.
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    # redis-py ignores a database that is not a number and takes 0, which others may use.
    number = re.fullmatch("[0-9]{0,6}", options.get("db", ""))
    certificates = options.get("ssl_cert_reqs", "required") in _CERT_REQS
    if options.keys() - allowed or (query and not options) or not (number and certificates):
        takes = ", ".join(sorted(allowed)) or "none"
        raise BadRedisUrl(
            f"it has an option that such a URL cannot have (it can have: {takes}), a db that is no"
            f" number, or an ssl_cert_reqs that is not one of {', '.join(_CERT_REQS)}"
        )
    return options


def is_local(host: str) -> bool:
    """Return whether only this machine can be reached by that name. Asks no name server."""
    ip = ip_of(host)
    return ip.is_loopback if ip else host.lower() == "localhost"


def ip_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that ``text`` is; None if it is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
