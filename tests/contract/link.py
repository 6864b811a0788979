"""The daemon's way to a Redis, and a namespace's store there, for tests that need no cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import RedisAccess, connect
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.model import IsPinned, nothing_pinned

from tests.contract.sealing import sealer
from tests.doubles.notes import Notes
from tests.servers.deployments import NO_ACCESS, Access

TTL_S = 1000


def redis_access(access: Access) -> RedisAccess:
    """Return the same credentials and certificates for ``connect``."""
    return RedisAccess(**asdict(access))


def open_link(url: str, access: Access = NO_ACCESS, timeout_s: float = 5.0) -> Any:
    """Return a RedisLink to the server at ``url``, of which tests may replace methods."""
    server = connect(url, redis_access(access), timeout_s=timeout_s)
    return RedisLink(server, timeout_s=timeout_s, retry_max_s=0.3)


def open_store(url: str, prefix: str = "wasm:", is_pinned: IsPinned = nothing_pinned) -> RedisStore:
    """Return the store of a namespace on the server at ``url``, with a link of its own."""
    return RedisStore(
        open_link(url),
        prefix,
        sealer(),
        Notes(),
        ttl_s=TTL_S,
        artifact_bytes=lambda: 1 << 30,
        module_bytes=lambda: 1 << 30,
        is_pinned=is_pinned,
        reports_usage=False,
    )
