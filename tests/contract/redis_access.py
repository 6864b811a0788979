"""What a deployment asks of its clients, as the daemon's own code takes it."""

from __future__ import annotations

from dataclasses import asdict

from wasmkilnd.cache.redis.connect import RedisAccess

from tests.servers.deployments import Access


def redis_access(access: Access) -> RedisAccess:
    """Return the same credentials and certificates for ``connect``."""
    return RedisAccess(**asdict(access))
