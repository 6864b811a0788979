"""The host store of a cache, and the writes to it; none, for tests that are about other tiers."""

from __future__ import annotations

from pathlib import Path

from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.ports import HostStore

from tests.contract.host_store import host_store
from tests.contract.sealing import sealer


def null_host() -> tuple[HostStore, WriteBehind]:
    """Return a host store that is switched off, and the writes to it."""
    return written(host_store(Path("unused"), sealer(), limit_bytes=0), 0)


def written(host: HostStore, limit_bytes: int = 100_000) -> tuple[HostStore, WriteBehind]:
    """Return ``host``, and the writes to it."""
    return host, WriteBehind(host, lambda: limit_bytes, NullTier("").always_ready)
