"""Strikes against modules in the shared tier, so that one daemon's harm makes all wise.

A record is stamped like a stored value: nobody but the fleet puts a module into
quarantine. Its age is the server's word: the time that it has left to live says when it
was written, so no clocks are compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import structlog

from wasmkilnd.cache.codec import CheckStamp, Stamp
from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.patience import Patience
from wasmkilnd.cache.strings import read_strings
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.ports import Sealer

_PURPOSE = b"wasmkiln strike\0"
_MAX_BYTES = 16 * 1024
_MAX_COUNT = 1_000_000
_MAX_S = 100 * 365 * 24 * 3600
_FIELDS = {
    "count": int,
    "engine": str,
    "fingerprint": str,
    "message": str,
    "module": str,
    "quarantine_s": float,
    "reason": str,
    "ttl_s": int,
}
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
        [(record, ttl_s)] = await self._patience.spend_on(self._records([self._names.strike(key)]))
        return self._read(key, record, ttl_s)

    async def put(self, strike: Strike, ttl_s: float) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds."""
        whole_s = max(1, round(ttl_s))
        record = write_strike(strike, whole_s, self._sealer.stamp)
        await self._patience.spend_on(
            self._link.set(self._names.strike(strike.key), record, whole_s)
        )

    async def all(self) -> Sequence[Strike]:
        """Answer all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        async for page in self._link.scan(self._names.strikes_pattern()):
            names = {name: key for name in page if (key := self._names.strike_key(name))}
            for start in range(0, len(names), _BATCH):
                some = list(names)[start : start + _BATCH]
                for name, record in (await read_strings(some, self._records))[0].items():
                    if strike := self._read(names[name], *record):
                        found[strike.key] = strike
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())[:_MAX_LISTED]

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

    async def _records(self, names: Sequence[bytes]) -> list[tuple[bytes, int]]:
        return await self._link.beginnings_with_ttls(names, _MAX_BYTES + 1)

    def _read(self, key: CacheKey, record: bytes, ttl_s: int) -> Strike | None:
        if not record:
            return None
        strike = read_strike(key, record, ttl_s, self._sealer.check_stamp)
        if strike is None:
            _log.warning("a quarantine record is not believed", module=key.module_sha256)
        return strike

    @property
    def _patience(self) -> Patience:
        return Patience.of_this_call(self._link.timeout_s)


def write_strike(strike: Strike, ttl_s: int, stamp: Stamp) -> bytes:
    """Answer the record of ``strike``, which is to live for ``ttl_s`` seconds."""
    text = json.dumps(
        {
            "count": strike.count,
            "engine": strike.engine_id,
            "fingerprint": strike.key.fingerprint,
            "message": strike.message,
            "module": strike.key.module_sha256,
            "quarantine_s": float(strike.left_s),
            "reason": strike.reason,
            "ttl_s": ttl_s,
        },
        sort_keys=True,
    ).encode()
    return stamp(_PURPOSE + text) + text


def read_strike(key: CacheKey, record: bytes, ttl_s: int, check: CheckStamp) -> Strike | None:
    """Answer what a record says that was stored for ``key`` and has ``ttl_s`` left to live.

    None if nobody trusted vouches for it, or if it says what no daemon writes.
    """
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > _MAX_BYTES or check(_PURPOSE + text, stamp):
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not _is_record(said):
        return None
    if (said["module"], said["fingerprint"]) != (key.module_sha256, key.fingerprint):
        return None
    # One that lives longer than it was written for was tampered with: it ends at once.
    age_s = said["ttl_s"] - ttl_s if 0 <= ttl_s <= said["ttl_s"] else said["ttl_s"]
    return Strike(
        key=key,
        engine_id=said["engine"],
        reason=said["reason"],
        message=said["message"],
        count=said["count"],
        left_s=max(0.0, said["quarantine_s"] - age_s),
    )


def _is_record(said: object) -> bool:
    return (
        isinstance(said, dict)
        and {name: type(value) for name, value in said.items()} == _FIELDS
        and all(value.isprintable() for value in said.values() if isinstance(value, str))
        and 0 < said["count"] <= _MAX_COUNT
        and 0 < said["ttl_s"] <= _MAX_S
        and 0 <= said["quarantine_s"] <= _MAX_S
    )
