"""Spread revocations of signing keys over the fleet, and learn those of other daemons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.revocations import (
    MAX_REVOCATION_BYTES,
    read_statement,
    write_statement,
)
from wasmkilnd.ports import Sealer

_TTL_S = 400 * 24 * 3600
_BATCH = 100
_MAX_KEYS = 1000


class RevocationStore:
    """The revocations on a server that daemons share: a statement for each revoked key."""

    def __init__(self, link: GuardedRedis, names: KeyNames, sealer: Sealer) -> None:
        self._link = link
        self._names = names
        self._sealer = sealer

    async def exchange(
        self, trusted: Iterable[str], known: Mapping[str, int], own: str
    ) -> dict[str, int]:
        """Return what other daemons revoke of the keys in ``trusted``; write there what is missing.

        ``known`` are the revocations that this daemon knows, and ``own`` is the id of the key
        that it signs with. Somebody who deletes a statement, or replaces it by one that does not
        count or says less, undoes nothing: it is written again. Raises TierUnavailable.
        """
        ids = sorted({*trusted, *known})[:_MAX_KEYS]
        found: dict[str, int] = {}
        for start in range(0, len(ids), _BATCH):
            by_name = {self._names.revoked(each): each for each in ids[start : start + _BATCH]}
            records, others = await read_strings(list(by_name), self._records)
            if others:
                await self._link.delete(sorted(others))
            for name, key_id in by_name.items():
                record = records.get(name, b"")
                since_ms = read_statement(key_id, record, self._sealer.check_stamp_now)
                if since_ms is not None:
                    found[key_id] = since_ms
                known_ms = known.get(key_id)
                if known_ms is None or key_id == own:
                    continue
                if since_ms is None or since_ms > known_ms:
                    statement = write_statement(key_id, known_ms, self._sealer.stamp)
                    await self._link.set(name, statement, _TTL_S)
        return found

    async def _records(self, names: Sequence[bytes]) -> list[bytes]:
        return await self._link.beginnings(names, [MAX_REVOCATION_BYTES + 1] * len(names))
