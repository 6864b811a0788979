"""Where to listen: ``host:port``, ``[v6]:port`` or ``unix:/path``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SUN_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux: unix(7), 108 with the final zero."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on. ``path`` is set for a Unix socket, else ``host`` and ``port``."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as a person writes it. Raises ValueError with what is allowed."""
        text = text.strip()
        if text.startswith("unix:"):
            return cls(path=_unix_path(text))
        host, colon, port_text = text.rpartition(":")
        if not colon:
            raise ValueError(
                f"{text!r} is not an address: write host:port, [v6]:port or unix:/path"
            )
        if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
            raise ValueError(f"{text!r} has no port from 0 to 65535 after its last colon")
        return cls(host=_host(host, text), port=int(port_text))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it. Asks no name server."""
        if self.path or self.host.lower() == "localhost":
            return True
        ip = _ip(self.host)
        return ip is not None and ip.is_loopback

    @property
    def listeners(self) -> int:
        """How many sockets may listen there: a host name may stand for IPv4 and IPv6."""
        return 1 if self.path or _ip(self.host) else 2

    def overlaps(self, other: Address) -> bool:
        """Whether one process cannot listen on both. Port 0 never overlaps: it is any free port."""
        if self.path or other.path:
            return self.path == other.path
        if self.port != other.port or self.port == 0:
            return False
        mine, others = _ip(self.host), _ip(other.host)
        if mine is None or others is None:
            return self.host.lower() == other.host.lower()
        if mine.version != others.version:
            return False
        return mine == others or mine.is_unspecified or others.is_unspecified


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # the URL form of the same: unix:///path
        path = path.removeprefix("//")
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise ValueError(f"{text!r} has no absolute path: write unix:/path")
    if len(path.encode(errors="surrogateescape")) > _SUN_PATH_BYTES:
        raise ValueError(f"{text!r} is longer than the {_SUN_PATH_BYTES} bytes of a socket's path")
    return path


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        ip = _ip(host[1:-1])
        if ip is None or ip.version != 6:
            raise ValueError(f"{text!r} has no IPv6 address between its brackets")
        return str(ip)
    if ":" in host:
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address in brackets, [v6]:port")
    if host in ("", "*"):
        raise ValueError(f"{text!r} has no host: write 0.0.0.0 or [::] for every interface")
    if _ip(host) is not None:
        return host
    # A name without a letter is a mistyped IPv4 address.
    if not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
        raise ValueError(f"{text!r} has neither an IP address nor a host name before its port")
    return host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
