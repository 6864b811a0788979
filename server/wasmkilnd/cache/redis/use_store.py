"""Records of uses on a server that daemons share: one for each daemon, in one of a few places.

A daemon writes its own sums alone, so no two daemons write to one key, and no command has to add
on the server. The fleet's sums are those of all records. A daemon takes a free place at its first
write, and takes over what daemons that have ended left in theirs.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.use_records import (
    MAX_RECORD_BYTES,
    OWNER_BYTES,
    UseRecord,
    owner_of,
    read_record,
    write_record,
)
from wasmkilnd.model import STAMP_BYTES
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.uses import Uses, summed

PLACES = 64
"""How many daemons of a fleet can write; of more, some do not count."""

_TTL_S = 14 * 24 * 3600
# A daemon that did not write for so long has ended without saying so.
_ABANDONED_S = 2 * 3600.0


class UseStore:
    """The records of one namespace. For one event loop, and one call at a time."""

    def __init__(self, link: GuardedRedis, names: KeyNames, sealer: Sealer) -> None:
        self._link = link
        self._names = names
        self._sealer = sealer
        self._owner = secrets.token_hex(OWNER_BYTES // 2).encode()
        self._place: int | None = None

    async def save(self, uses: Uses, *, last: bool = False) -> Uses:
        """Write what this daemon counted; return it, with what it took over from others.

        ``last`` says that the daemon ends. Raises TierUnavailable.
        """
        if self._place is None:
            uses = summed([uses, *await self._take_over()])
        # Of ten thousand uses, this takes as long as many calls do.
        record = UseRecord(uses, self._owner, last)
        value = await asyncio.to_thread(
            write_record, record, self._names.all_uses, self._sealer.stamp
        )
        if self._place is not None:
            name = self._names.uses(self._place)
            if await self._owner_at(name) in (b"", self._owner):
                await self._link.set(name, value, _TTL_S)
                return uses
        self._place = None
        for place in random.sample(range(PLACES), PLACES):
            if await self._link.add(self._names.uses(place), value, _TTL_S):
                self._place = place
                break
        return uses

    async def of_others(self) -> Uses:
        """Return the sums of all daemons but this one. Raises TierUnavailable."""
        whole = Uses()
        for place in range(PLACES):
            record, _ = await self._read(place)
            if record and record.owner != self._owner:
                whole.add(record.uses)
        return whole

    async def _take_over(self) -> list[Uses]:
        found = []
        for place in range(PLACES):
            record, value = await self._read(place)
            if not value:
                continue
            name = self._names.uses(place)
            if record is None:  # It only takes the place away.
                await self._link.delete([name])
                continue
            ended = record.left or record.uses.at_s + _ABANDONED_S < time.time()
            # Of several daemons that begin at once, one takes it over.
            if ended and await self._link.delete_if(name, value):
                found.append(record.uses)
        return found

    async def _read(self, place: int) -> tuple[UseRecord | None, bytes]:
        name = self._names.uses(place)
        value = await self._beginning(name, MAX_RECORD_BYTES + 1)
        if not value:
            return None, b""
        check = self._sealer.check_stamp
        return await asyncio.to_thread(read_record, value, self._names.all_uses, check), value

    async def _owner_at(self, name: bytes) -> bytes:
        return owner_of(await self._beginning(name, STAMP_BYTES + OWNER_BYTES))

    async def _beginning(self, name: bytes, length: int) -> bytes:
        found, others = await read_strings(
            [name], lambda names: self._link.beginnings(names, [length] * len(names))
        )
        if others:
            await self._link.delete(sorted(others))
        return found.get(name, b"")
