"""The Redis commands on leases: each compares and acts in one step on the server."""

from __future__ import annotations

from wasmkilnd.cache.redis.guarded import (
    GuardedRedis,
    as_bytes,
    as_done,
    as_flag,
    beginning,
)

TOKEN_BYTES = 32
"""The length of a token: the first bytes of a lease, which tell its holders apart."""

# More than any lease has: as much of a longer value shows that it is none.
_MAX_LEASE_BYTES = 512


class LeaseCommands:
    """Runs commands on leases. Each method raises TierUnavailable, and what GuardedRedis raises."""

    def __init__(self, link: GuardedRedis) -> None:
        self._link = link

    async def take(
        self, lease: bytes, value: bytes, ttl_ms: int, wanted: bytes
    ) -> tuple[bool, bytes, bool]:
        """Store ``value`` under ``lease`` for a time, if nothing is there.

        Return whether it was stored, what is there now (empty for nothing), and whether
        ``wanted`` exists, as it was after the lease was taken.
        """
        taken, held, exists = await self._link.run(
            [
                (as_done, ("SET", lease, value, "PX", ttl_ms, "NX")),
                (as_bytes, beginning(lease, _MAX_LEASE_BYTES)),
                (as_flag, ("EXISTS", wanted)),
            ]
        )
        return taken, held, exists

    async def peek(self, lease: bytes, wanted: bytes) -> tuple[bytes, bool]:
        """Return what is under ``lease`` (empty for nothing), and whether ``wanted`` exists."""
        looking = as_bytes, beginning(lease, _MAX_LEASE_BYTES)
        held, exists = await self._link.run([looking, (as_flag, ("EXISTS", wanted))])
        return held, exists

    async def keep(self, lease: bytes, token: bytes, value: bytes, ttl_ms: int) -> bool:
        """Replace what is under ``lease`` by ``value`` for a time, if it begins as ``token`` does.

        Return whether it did. The first ``TOKEN_BYTES`` bytes are compared.
        """
        [kept] = await self._link.run([(as_flag, ("EVAL", _KEEP, 1, lease, token, value, ttl_ms))])
        return bool(kept)

    async def release(self, lease: bytes, token: bytes) -> None:
        """Remove what is under ``lease``, if it begins as ``token`` does."""
        await self._link.run([(as_flag, ("EVAL", _RELEASE, 1, lease, token))])


# A holder that lost its lease must not touch the next holder's: compare and act are one step.
# GETRANGE, since the key may hold another client's value, and a huge one.
_IS_HELD = f"""
if redis.call('exists', KEYS[1]) == 0 then return 0 end
local held = redis.call('getrange', KEYS[1], 0, {TOKEN_BYTES - 1})
if held ~= ARGV[1]:sub(1, {TOKEN_BYTES}) then return 0 end
"""
_KEEP = f"""{_IS_HELD}
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = f"""{_IS_HELD}
return redis.call('del', KEYS[1])
"""
