"""Who calls, through which entrance, and what they may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

DEFAULT_NAMESPACE = ""
"""Callers without a namespace of their own; keys and paths of it carry no namespace."""


class Role(Enum):
    """What an identity may do. The values are those of policy files and tokens."""

    READ = "read"
    """Get artifacts by digest that a tier holds; compile nothing."""
    COMPILE = "compile"
    """Upload and compile modules; includes READ."""
    ADMIN = "admin"
    """Evict, pin, list and release quarantined modules; in the default namespace also Drain."""
    METRICS = "metrics"
    """Read Stats, /metrics and the connections."""


ALL_ROLES = frozenset(Role)


def with_included(roles: Iterable[Role]) -> frozenset[Role]:
    """Return ``roles`` and those that they include."""
    given = frozenset(roles)
    return given | {Role.READ} if Role.COMPILE in given else given


class Transport(Enum):
    """How a connection is protected."""

    PLAINTEXT = "plaintext"
    UNIX = "unix"
    TLS = "tls"
    MTLS = "mtls"
    """TLS on which every caller shows a certificate."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """A group of addresses that the daemon listens on, and what is served there."""

    transport: Transport = Transport.PLAINTEXT
    address: str = ""
    """Of a Unix socket, ``unix:/path``: its mode and group decide who can connect."""


PLAINTEXT = Entrance()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings along to say who makes it."""

    authorization: str = ""
    """The metadata or header ``authorization``."""
    certificate: bytes = b""
    """The peer's certificate as PEM. TLS has verified it when the connection was made."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call, and what they may do."""

    name: str
    """For logs, the audit and quotas: ``token:NAME``, ``spiffe://…``, ``dns:HOST``,
    ``jwt:SUBJECT``, ``unix:/path``, ``anonymous``, or empty where the daemon asks for none."""
    roles: frozenset[Role]
    namespace: str = DEFAULT_NAMESPACE
    quota: str = ""
    """The name of its quota in the policy; empty for none."""


ANYBODY = Identity("", ALL_ROLES)
"""Every caller of a daemon that asks for no identity."""
