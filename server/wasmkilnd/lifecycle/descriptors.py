"""Shares out the file descriptors: jobs, Redis and the admin server have theirs for certain.

Whoever opens connections to the gRPC port gets what is left, and can take no other's.
"""

from __future__ import annotations

import resource

import structlog

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


def needed(*, workers: int, cluster: bool, admin: int) -> int:
    """Return how many descriptors the daemon needs for all but connections to the gRPC port.

    ``cluster`` says whether Redis is one, and ``admin`` how many the admin server takes.
    """
    return workers * _WORKER + (_REDIS_CLUSTER if cluster else _REDIS) + admin + _OTHERS


def share_out(connections: int, listeners: int, others: int) -> int:
    """Let the process open what it needs; return the connections that each listener may have.

    They are ``connections`` where the hard limit of the process allows it. Where it does not,
    they are fewer, and the log says so.
    """
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
