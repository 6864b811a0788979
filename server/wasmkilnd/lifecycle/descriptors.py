"""Divide the file descriptors: jobs, Redis and the admin server have a fixed share.

Connections to the gRPC port get the rest, so that callers cannot take the others' share.
"""

from __future__ import annotations

import resource

import structlog

from wasmkilnd.setting_values import NONE, Address
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry import admin

log = structlog.get_logger("wasmkilnd")

# A worker needs so many while it starts and runs a job, both ends of its pipes included.
_WORKER = 8
# The size of the connection pool of one server. For a cluster, that of six primaries: the
# primaries of larger clusters are not all busy at once.
_REDIS = 32
_REDIS_CLUSTER = 6 * _REDIS
# Files, listening sockets, what gRPC and threads use for themselves, and a reserve.
_OTHERS = 96
_LEAST_CONNECTIONS = 16


def connections_per_address(settings: Settings, engines: int) -> int:
    """Return how many connections each address of gRPC may have, with ``engines`` at work.

    Raise the soft limit of the process to what the daemon needs. Where the hard limit is below
    that, the addresses get fewer connections than ``max_connections``, and the log says so.
    """
    addresses = (*settings.listen, *settings.token_listen, *settings.operator_listen)
    listeners = sum(Address.parse(address).listeners for address in addresses)
    connections = settings.max_connections
    others = _needed_by_others(settings, engines)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections * listeners + others
    if hard != resource.RLIM_INFINITY and hard < wanted:
        connections = max(_LEAST_CONNECTIONS, (hard - others) // listeners)
        log.warning(
            "too few file descriptors",
            allowed=hard,
            needed=wanted,
            max_connections=connections,
            advice="raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd),"
            " or lower max_connections",
        )
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return connections


def make_room(engines: int, settings: Settings) -> None:
    """Raise the soft limit for the workers of so many further engines, as far as that goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + engines * settings.effective_workers * _WORKER
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning(
            "too few file descriptors",
            allowed=hard,
            needed=wanted,
            advice="raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd), and restart",
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _needed_by_others(settings: Settings, engines: int) -> int:
    """Return how many descriptors the daemon needs beside connections to the gRPC port."""
    workers = engines * settings.effective_workers
    cluster = "+cluster:" in settings.redis_url.get_secret_value()
    pages = admin.TLS_LIMIT if settings.tls_cert_file else admin.LIMIT
    pages = 0 if settings.admin_listen == NONE else pages
    return workers * _WORKER + (_REDIS_CLUSTER if cluster else _REDIS) + pages + _OTHERS
