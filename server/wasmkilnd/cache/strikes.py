"""Strikes against modules in the shared tier, so that one daemon's harm makes all wise.

A record is stamped like a stored value: nobody but the fleet puts a module into
quarantine. Its age is the server's word: the time that it has left to live says when it
was written, so no clocks are compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import structlog

from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.patience import Patience
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.ports import Sealer

_PURPOSE = b"wasmkiln strike\0"
_MAX_BYTES = 16 * 1024
_MAX_LISTED = 10_000
_BATCH = 100

_log = structlog.get_logger("wasmkilnd.cache")


class NoStrikes:
    """For a daemon without a shared tier: it has nobody but itself to ask and to tell."""

    async def get(self, key: CacheKey) -> Strike | None:
        """Raise TierUnavailable."""
        raise TierUnavailable("there is no shared tier")

    async def put(self, strike: Strike, ttl_s: float) -> None:
        """Raise TierUnavailable."""
        raise TierUnavailable("there is no shared tier")

    async def all(self) -> Sequence[Strike]:
        """Find nothing."""
        return []

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Find nothing."""
        return []


class RedisStrikes:
    """Records on a server that other daemons share. Every method raises TierUnavailable."""

    def __init__(self, link: RedisLink, names: KeyNames, sealer: Sealer) -> None:
        self._link = link
        self._names = names
        self._sealer = sealer

    async def get(self, key: CacheKey) -> Strike | None:
        """Answer the strike against ``key``, with the time that its quarantine has left."""
        return await self._patience.spend_on(self._get(key))

    async def _get(self, key: CacheKey) -> Strike | None:
        record, ttl_s = await self._link.get_with_ttl(self._names.strike(key))
        return self._read(key, record, ttl_s) if record else None

    async def put(self, strike: Strike, ttl_s: float) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds."""
        record = json.dumps(
            {
                "count": strike.count,
                "engine": strike.engine_id,
                "fingerprint": strike.key.fingerprint,
                "message": strike.message,
                "module": strike.key.module_sha256,
                "quarantine_s": strike.left_s,
                "reason": strike.reason,
                "ttl_s": max(1, round(ttl_s)),
            },
            sort_keys=True,
        ).encode()
        stamp = self._sealer.stamp(_PURPOSE + record)
        name = self._names.strike(strike.key)
        storing = self._link.set(name, stamp + record, max(1, round(ttl_s)))
        await self._patience.spend_on(storing)

    async def all(self) -> Sequence[Strike]:
        """Answer all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        async for page in self._link.scan(self._names.strikes_pattern()):
            for key in map(self._names.strike_key, page):
                strike = await self._get(key) if key and key not in found else None
                if strike:
                    found[strike.key] = strike
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, against all for an empty digest."""
        gone: list[CacheKey] = []
        async for page in self._link.scan(self._names.strikes_pattern(module_sha256)):
            for start in range(0, len(page), _BATCH):
                names = page[start : start + _BATCH]
                existed = await self._link.delete(names)
                keys = [self._names.strike_key(name) for name in names]
                gone += [key for key, did in zip(keys, existed, strict=True) if did and key]
        return gone

    @property
    def _patience(self) -> Patience:
        return Patience.of_this_call(self._link.timeout_s)

    def _read(self, key: CacheKey, record: bytes, ttl_s: int) -> Strike | None:
        stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
        try:
            if len(record) > _MAX_BYTES or self._sealer.check_stamp(_PURPOSE + text, stamp):
                raise ValueError
            said = json.loads(text)
            if (said["module"], said["fingerprint"]) != (key.module_sha256, key.fingerprint):
                raise ValueError
            # One that lives longer than it was written for was tampered with: it ends at once.
            age_s = said["ttl_s"] - ttl_s if 0 <= ttl_s <= said["ttl_s"] else said["ttl_s"]
            return Strike(
                key=key,
                engine_id=said["engine"],
                reason=said["reason"],
                message=said["message"],
                count=int(said["count"]),
                left_s=max(0.0, float(said["quarantine_s"]) - age_s),
            )
        except (ValueError, KeyError, TypeError):
            _log.warning("a quarantine record is not believed", module=key.module_sha256)
            return None
