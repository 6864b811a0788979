"""Shares compile failures between daemons through Redis.

Records are stamped (:mod:`wasmkilnd.cache.fleet.strike_record`), so only a daemon with a trusted
key can put a module into quarantine. A released strike that someone writes back has no effect
(:mod:`wasmkilnd.cache.value.marks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from wasmkilnd.cache.fleet.strike_record import MAX_RECORD_BYTES, read_record, write_record
from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.mark_store import MarkStore
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import WrongType
from wasmkilnd.model import CacheKey, Strike
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import WaitBudget

_MAX_LISTED = 10_000
_BATCH = 100

_log = structlog.get_logger("wasmkilnd.cache")


class RedisStrikes:
    """Strikes in Redis. Every method raises TierUnavailable."""

    def __init__(
        self, link: GuardedRedis, names: KeyNames, sealer: Sealer, marks: MarkStore | None = None
    ) -> None:
        """``marks`` tell which strikes were released."""
        self._link = link
        self._names = names
        self._sealer = sealer
        self._marks = marks or MarkStore(link, names, sealer, Marks(), 0)

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        return await budget.spend_on(self._get(key))

    async def put(
        self, strike: Strike, ttl_s: float, budget: WaitBudget | None, age_s: float = 0.0
    ) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds.

        A strike that is ``age_s`` old is not stored if it was released since, or if the stored
        one counts as many failures. ``budget`` is the waiting call's, None if no call waits.
        """
        putting = self._put(strike, max(1, round(ttl_s)), age_s)
        await (budget.spend_on(putting) if budget else putting)

    async def ready(self) -> None:
        """Return once the server is believed to answer."""
        await self._link.breaker.wait_closed()

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        async for page in self._link.scan(self._names.strikes_pattern()):
            names = {name: key for name in page if (key := self._names.strike_key(name))}
            for start in range(0, len(names), _BATCH):
                some = list(names)[start : start + _BATCH]
                read, _ = await self._with_marks({name: names[name] for name in some})
                for name, record in read.items():
                    if strike := self._read(names[name], *record):
                        found[strike.key] = strike
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())[:_MAX_LISTED]

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, or against all modules for an empty digest.

        A strike that someone writes back afterwards has no effect.
        """
        removed: list[CacheKey] = []
        await self._marks.release(module_sha256, 0)
        async for page in self._link.scan(self._names.strikes_pattern(module_sha256)):
            for start in range(0, len(page), _BATCH):
                names = page[start : start + _BATCH]
                await self._release_later(module_sha256, names)
                existed = await self._link.delete(names)
                keys = [self._names.strike_key(name) for name in names]
                removed += [key for key, did in zip(keys, existed, strict=True) if did and key]
        return removed

    async def _get(self, key: CacheKey) -> Strike | None:
        name = self._names.strike(key)
        read, others = await self._with_marks({name: key})
        if others:
            raise WrongType("the key of a strike holds no string")
        return self._read(key, *read[name])

    async def _with_marks(
        self, names: Mapping[bytes, CacheKey]
    ) -> tuple[dict[bytes, tuple[bytes, int]], frozenset[bytes]]:
        """Return the records under ``names``, and which names hold no string.

        Read the marks about these modules in the same round trip.
        """
        marks: dict[bytes, str] = {}
        for key in names.values():
            marks |= self._marks.names_for(key.module_sha256)
        read, others = await read_strings([*names, *marks], self._records)
        await self._marks.discard(others & marks.keys())
        for name, whose in marks.items():
            if name in read:
                self._marks.learn(whose, read.pop(name)[0])
        return read, others & names.keys()

    async def _put(self, strike: Strike, ttl_s: int, age_s: float) -> None:
        marks, key = self._marks.marks, strike.key
        struck_ms = marks.now_ms - round(age_s * 1000)
        released_ms = marks.released_ms(key.module_sha256)
        if age_s:
            there = await self._get(key)
            released_ms = marks.released_ms(key.module_sha256)
            if struck_ms <= released_ms or (there and there.count >= strike.count):
                return
        record = write_record(strike, ttl_s, max(struck_ms, released_ms + 1), self._sealer.stamp)
        await self._link.set(self._names.strike(key), record, ttl_s)

    async def _release_later(self, module_sha256: str, names: Sequence[bytes]) -> None:
        """Move the mark past strikes of daemons whose clocks are ahead."""
        found = (await read_strings(names, self._records))[0]
        keys = {name: key for name in found if (key := self._names.strike_key(name))}
        check = self._sealer.check_stamp
        records = [read_record(key, found[name][0], check) for name, key in keys.items()]
        newest_ms = max((record.struck_ms for record in records if record), default=0)
        if newest_ms > self._marks.marks.released_ms(module_sha256):
            await self._marks.release(module_sha256, newest_ms)

    async def _records(self, names: Sequence[bytes]) -> list[tuple[bytes, int]]:
        return await self._link.beginnings_with_ttls(names, MAX_RECORD_BYTES + 1)

    def _read(self, key: CacheKey, record: bytes, ttl_s: int) -> Strike | None:
        if not record:
            return None
        read = read_record(key, record, self._sealer.check_stamp)
        if read is None:
            _log.warning(
                "ignored a quarantine record without a valid stamp", module=key.module_sha256
            )
            return None
        marks = self._marks.marks
        if read.struck_ms <= (marks.released_ms(key.module_sha256) or -1):
            return None
        return read.strike_at(ttl_s, marks.now_ms)
