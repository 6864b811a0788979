"""The Redis commands on leases: each compares and acts in one step on the server."""

from __future__ import annotations

from wasmkilnd.cache.fleet.lease import TOKEN_BYTES
from wasmkilnd.cache.redis.guarded import (
    GuardedRedis,
    as_bytes,
    as_done,
    as_flag,
    beginning,
)

# More than any lease has: this much of a longer value is enough to tell that it is no lease.
_MAX_LEASE_BYTES = 512


class LeaseCommands:
    """Runs commands on leases. Every method raises what GuardedRedis raises."""

    def __init__(self, link: GuardedRedis) -> None:
        self._link = link

    async def take(
        self, lease: bytes, value: bytes, ttl_ms: int, wanted: bytes
    ) -> tuple[bool, bytes, bool]:
        """Store ``value`` under ``lease`` for ``ttl_ms``, if the key is free.

        Return whether it was stored, what the key holds now (empty for nothing), and whether
        ``wanted`` exists, as of after the lease was taken.
        """
        taken, held, exists = await self._link.run(
            [
                (as_done, ("SET", lease, value, "PX", ttl_ms, "NX")),
                (as_bytes, beginning(lease, _MAX_LEASE_BYTES)),
                (as_flag, ("EXISTS", wanted)),
            ]
        )
        return taken, held, exists

    async def look(self, lease: bytes, wanted: bytes) -> tuple[bytes, bool]:
        """Return what ``lease`` holds (empty for nothing), and whether ``wanted`` exists."""
        looking = as_bytes, beginning(lease, _MAX_LEASE_BYTES)
        held, exists = await self._link.run([looking, (as_flag, ("EXISTS", wanted))])
        return held, exists

    async def replace(self, lease: bytes, token: bytes, value: bytes, ttl_ms: int) -> bool:
        """Store ``value`` under ``lease`` for ``ttl_ms``, if the key holds a value of ``token``.

        Return whether it did. The first ``TOKEN_BYTES`` bytes of both are compared.
        """
        [replaced] = await self._link.run(
            [(as_flag, ("EVAL", _REPLACE, 1, lease, token, value, ttl_ms))]
        )
        return bool(replaced)

    async def release(self, lease: bytes, token: bytes) -> None:
        """Delete ``lease``, if it holds a value of ``token``."""
        await self._link.run([(as_flag, ("EVAL", _RELEASE, 1, lease, token))])


# Compare and act in one step, so that a holder that lost its lease cannot touch the next one's.
# GETRANGE, since another client may have stored a huge value under the key.
_IS_HELD = f"""
if redis.call('exists', KEYS[1]) == 0 then return 0 end
local held = redis.call('getrange', KEYS[1], 0, {TOKEN_BYTES - 1})
if held ~= ARGV[1]:sub(1, {TOKEN_BYTES}) then return 0 end
"""
_REPLACE = f"""{_IS_HELD}
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = f"""{_IS_HELD}
return redis.call('del', KEYS[1])
"""
