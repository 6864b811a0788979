"""The table of access: what each RPC and each HTTP path needs. A path without a row is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wasmkilnd.model import Role


@dataclass(frozen=True, slots=True)
class Need:
    """A row of the table."""

    role: Role | None = None
    """The role that the caller needs; None where any identity will do."""
    health: bool = False
    """Whether ``open_health`` opens it to everybody."""
    whole_daemon: bool = False
    """Whether it acts on all namespaces, so that only the default one's callers may."""


_ANY_IDENTITY = Need()
_HEALTH = Need(health=True)
_READ = Need(Role.READ)
_COMPILE = Need(Role.COMPILE)
_ADMIN = Need(Role.ADMIN)
_METRICS = Need(Role.METRICS)
_METRICS_OF_ALL = Need(Role.METRICS, whole_daemon=True)

_MODULES = "/wasmkiln.v1.ModuleService/"
_OPERATING = "/wasmkiln.v1.AdminService/"
_HEALTH_SERVICE = "/grpc.health.v1.Health/"
_CHANNELZ = "/grpc.channelz.v1.Channelz/"

RPCS: Mapping[str, Need] = {
    f"{_MODULES}Load": _COMPILE,
    # Uploading and compiling need COMPILE: the services check that, which know the request.
    f"{_MODULES}Compile": _READ,
    f"{_MODULES}FindMissing": _READ,
    f"{_MODULES}GetCapabilities": _ANY_IDENTITY,
    f"{_MODULES}Stats": _METRICS,
    f"{_OPERATING}Evict": _ADMIN,
    f"{_OPERATING}ListQuarantine": _ADMIN,
    f"{_OPERATING}ReleaseQuarantine": _ADMIN,
    f"{_OPERATING}Pin": _ADMIN,
    f"{_OPERATING}Unpin": _ADMIN,
    f"{_OPERATING}ListPins": _ADMIN,
    f"{_OPERATING}Drain": Need(Role.ADMIN, whole_daemon=True),
    f"{_HEALTH_SERVICE}Check": _HEALTH,
    f"{_HEALTH_SERVICE}List": _HEALTH,
    f"{_HEALTH_SERVICE}Watch": _HEALTH,
    **{
        f"{_CHANNELZ}{name}": _METRICS_OF_ALL
        for name in (
            *("GetTopChannels", "GetServers", "GetServer", "GetServerSockets"),
            *("GetChannel", "GetSubchannel", "GetSocket"),
        )
    },
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _ANY_IDENTITY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ANY_IDENTITY,
}

PATHS: Mapping[str, Need] = {
    "/metrics": _METRICS_OF_ALL,
    "/": _METRICS_OF_ALL,
    "/status": _METRICS_OF_ALL,
    "/status/live": _METRICS_OF_ALL,
    "/status/page.css": _METRICS_OF_ALL,
    "/status/page.js": _METRICS_OF_ALL,
    "/status/icon.svg": _METRICS_OF_ALL,
    "/healthz": _HEALTH,
    "/readyz": _HEALTH,
}
