"""What the tier does with a stored value that does not verify: it counts, logs and deletes it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import structlog

from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.ports import Recorder

_LOGGED_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_REMEMBERED = 64

_log = structlog.get_logger("wasmkilnd.cache")


class Rejections:
    """Counts, logs and deletes the rejected values of ``tier``."""

    def __init__(self, tier: str, link: GuardedRedis, recorder: Recorder) -> None:
        self._tier = tier
        self._link = link
        self._recorder = recorder
        self._logged: set[str] = set()

    async def discard(
        self,
        name: bytes,
        value: bytes | None,
        parts: Sequence[bytes],
        rejected: ValueRejected,
    ) -> None:
        """Delete ``value`` and ``parts`` if it is still under ``name``; never raises.

        None stands for what no daemon stores, which is deleted whatever it is by now.
        """
        cause = rejected.cause.value
        self._recorder.value_rejected(self._tier, cause)
        log = _log.warning
        if rejected.cause is Cause.INCOMPLETE:
            log = _log.info  # Nothing is wrong: the server evicts piece by piece.
        elif self._was_logged(rejected):
            log = _log.debug
        log("stored value rejected", key=name.decode(), cause=cause, why=rejected.why)
        with contextlib.suppress(TierUnavailable):  # The next reader will reject it again.
            if value is None:
                await self._link.delete([name])
            else:
                await self._link.delete_if(name, value, parts)

    def _was_logged(self, rejected: ValueRejected) -> bool:
        """Return whether a value was rejected for the same reason before.

        A fleet whose daemons do not trust each other's keys rejects every value for it.
        """
        if rejected.cause not in _LOGGED_ONCE or rejected.why in self._logged:
            return rejected.cause in _LOGGED_ONCE
        # A writer to Redis can make up any number of reasons.
        if len(self._logged) < _MAX_REMEMBERED:
            self._logged.add(rejected.why)
            return False
        return True
