"""Whether a server that answers also takes writes: not if it is full, or read-only."""

from __future__ import annotations

import contextlib

import structlog

from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.errors import TierUnavailable

# Behind the name of what was refused: so it is tried at the same node of a cluster.
_TRIAL = b":trial"
_TRIAL_S = 1

_log = structlog.get_logger("wasmkilnd.cache")


class WriteHealth:
    """Remembers that ``tier`` takes no writes, until one succeeds. Tells of both once."""

    def __init__(self, tier: str, link: GuardedRedis) -> None:
        self._tier = tier
        self._link = link
        self._refused = b""
        self.refusal = ""
        """Why it takes no writes; empty while it does."""

    def refused(self, name: bytes, why: str) -> None:
        """Take note that what was to be stored under ``name`` was refused."""
        if not self.refusal:
            _log.warning("tier takes no writes", tier=self._tier, detail=why)
            self._refused, self.refusal = name, why

    def taken(self) -> None:
        """Take note that a write succeeded."""
        if self.refusal:
            _log.info("tier takes writes again", tier=self._tier)
            self.refusal = ""

    async def try_again(self) -> None:
        """Find out whether writes are taken again, for there may be none for long. Never raises."""
        if self.refusal:
            with contextlib.suppress(TierUnavailable):
                await self._link.set(self._refused + _TRIAL, b"", _TRIAL_S)
                self.taken()
