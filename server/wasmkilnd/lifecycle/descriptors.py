"""Shares out the file descriptors: jobs, Redis and the admin server have theirs for certain.

Whoever opens connections to the gRPC port gets what is left, and can take no other's.
"""

from __future__ import annotations

import resource

import structlog

from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.address import Address
from wasmkilnd.config.values.types import NO_ADMIN
from wasmkilnd.telemetry.admin.listener import DESCRIPTORS as ADMIN_DESCRIPTORS

log = structlog.get_logger("wasmkilnd")

# What a worker takes while it starts and has a job, the job's ends included.
_WORKER = 8
# As many as the pool of connections to one server has; of a cluster, to as many primaries as
# small ones have: larger ones are not all busy at once.
_REDIS = 32
_REDIS_CLUSTER = 6 * _REDIS
# Files, sockets that listen, what gRPC and threads use for themselves, and some to spare.
_OTHERS = 96
_LEAST_CONNECTIONS = 16


def connections_per_address(settings: Settings, engines: int) -> int:
    """Return how many connections each address of ``listen`` may have, with ``engines`` at work.

    Raise the soft limit of the process to what the daemon needs. Where the hard limit is below
    that, the addresses get fewer connections than ``max_connections``, and the log says so.
    """
    listeners = sum(Address.parse(address).listeners for address in settings.listen)
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


def _needed_by_others(settings: Settings, engines: int) -> int:
    """Return how many descriptors the daemon needs beside connections to the gRPC port."""
    workers = engines * settings.effective_workers
    cluster = "+cluster:" in settings.redis_url.get_secret_value()
    admin = 0 if settings.admin_listen == NO_ADMIN else ADMIN_DESCRIPTORS
    return workers * _WORKER + (_REDIS_CLUSTER if cluster else _REDIS) + admin + _OTHERS
