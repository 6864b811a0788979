"""oci://HOST/REPOSITORY[:TAG][@DIGEST], taken apart."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from wasmkiln._untrusted import quoted

SCHEME = "oci://"
# What the distribution specification allows, and no more: all of it goes into URLs.
_HOST = r"(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?)"
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"{_HOST}/(?P<repository>{_WORD}(?:/{_WORD})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@sha256:(?P<digest>[0-9a-f]{64}))?"
)
_MOST_CHARACTERS = 1_000
_LATEST = "latest"
# Docker Hub is known by one name, answers at another, and logs in under a third.
_HUB, _HUB_HOST, _HUB_LOGIN = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Reference:
    """A manifest in a registry: by its digest where that is given, else by its tag."""

    host: str
    repository: str
    tag: str
    digest: str

    @property
    def manifest(self) -> str:
        """What names the manifest in its URL."""
        return f"sha256:{self.digest}" if self.digest else self.tag or _LATEST

    @property
    def login(self) -> str:
        """The name under which Docker's configuration has the credentials."""
        return _HUB_LOGIN if self.host == _HUB_HOST else self.host

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine."""
        return is_loopback(host_of(self.host))


def parsed(text: str) -> Reference:
    """Return the reference that a text names. Raise ValueError with a sentence."""
    rest = text.removeprefix(SCHEME)
    found = _REFERENCE.fullmatch(rest) if len(rest) <= _MOST_CHARACTERS else None
    if found is None:
        raise ValueError(
            f"{quoted(text)} is no reference: write oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST], "
            "with the repository in lower case"
        )
    host, repository = found["host"], found["repository"]
    if host in {_HUB, "index.docker.io", _HUB_HOST}:
        host = _HUB_HOST
        repository = repository if "/" in repository else f"library/{repository}"
    elif not re.search(r"[.:\[]", host) and host != "localhost":
        raise ValueError(
            f"{quoted(text)} names no registry: write oci://HOST/{quoted(host)}/…, "
            f"for example oci://{_HUB}/{quoted(rest)}"
        )
    return Reference(host, repository, found["tag"] or "", found["digest"] or "")


def host_of(authority: str) -> str:
    """Return the host of HOST[:PORT], without the brackets of an IPv6 address."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
