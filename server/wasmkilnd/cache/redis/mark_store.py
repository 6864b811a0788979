"""Store marks of evictions for all daemons, and restore those that someone deletes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.value.marks import (
    EVERYTHING,
    MAX_MARK_BYTES,
    Mark,
    Marks,
    read_mark,
    write_mark,
)
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import EvictScope
from wasmkilnd.signing.sealer import Sealer

_LEAST_TTL_S = 30 * 24 * 3600
_TIMES_AS_LONG = 2
_MAX_RESTORING = 16
_RESTORED_EVERY_S = 5.0
_EVERYTHING_EVERY_S = 0.1
_BATCH = 100
_MAX_CHECKED = 1000


class MarkStore:
    """The marks on a server that daemons share, and in ``marks`` those that this daemon knows.

    A mark lives twice as long as the values that it concerns, and a month at least. For one
    event loop.
    """

    def __init__(
        self, link: GuardedRedis, names: KeyNames, sealer: Sealer, marks: Marks, ttl_s: int
    ) -> None:
        """``ttl_s`` is the time to live of values."""
        self.marks = marks
        self._link = link
        self._names = names
        self._sealer = sealer
        self._ttl_s = max(_TIMES_AS_LONG * ttl_s, _LEAST_TTL_S)
        self._checked: OrderedDict[bytes, Mark] = OrderedDict()  # By digest.
        self._everything_at_s = -_EVERYTHING_EVERY_S
        self._restoring: dict[str, asyncio.Task[None]] = {}

    def names_for(self, module_sha256: str) -> dict[bytes, str]:
        """Return the names of the marks to read along with a module's values, and whose each is.

        The mark of EVERYTHING is among them once in 0.1 s at most, so that it costs hits
        nothing, and never in a cluster, where another node has it (``refresh`` reads it).
        """
        whose, now_s = [module_sha256], time.monotonic()
        if self._link.is_one_place and now_s - self._everything_at_s > _EVERYTHING_EVERY_S:
            self._everything_at_s = now_s
            whose.append(EVERYTHING)
        return {self._names.mark(each): each for each in whose}

    def learn(self, module_sha256: str, record: bytes) -> None:
        """Learn ``record``, which was read as the mark of a module or of EVERYTHING.

        If this daemon knows more than ``record`` says, someone deleted the mark or wrote back an
        older one: the daemon writes its own in the background.
        """
        read = self._read(self._names.mark(module_sha256), record)
        self.marks.learn(module_sha256, read)
        if self.marks.of(module_sha256) != read:
            self._restore(module_sha256)

    async def refresh(self) -> None:
        """Read the mark of EVERYTHING. Raises TierUnavailable."""
        await self.look([EVERYTHING])

    async def look(self, modules: Sequence[str]) -> None:
        """Read the marks of modules. Raises TierUnavailable."""
        for start in range(0, len(modules), _BATCH):
            by_name = {self._names.mark(each): each for each in modules[start : start + _BATCH]}
            found, others = await read_strings(list(by_name), self._records)
            await self.discard(others)
            for name, record in found.items():
                self.learn(by_name[name], record)

    async def discard(self, names: frozenset[bytes]) -> None:
        """Delete ``names``, marks' keys that hold another type. Raises TierUnavailable."""
        if names:
            await self._link.delete(sorted(names))

    async def evict(self, scope: EvictScope) -> None:
        """Mark all in ``scope`` that was made so far as evicted. Raises TierUnavailable.

        This daemon remembers the eviction even if it cannot store the mark.
        """
        await self._write(self.marks.evict(scope))

    async def release(self, module_sha256: str, newest_ms: int) -> None:
        """Mark a module's strikes as released; ``newest_ms`` is the time of the newest one."""
        self.marks.release(module_sha256, newest_ms)
        await self._write(module_sha256)

    def recheck(self) -> None:
        """Check the stamp of each stored mark again: a key is no longer trusted.

        What this daemon knows it writes again, signed with its own key: other daemons that start
        later would know nothing of the eviction.
        """
        self._checked.clear()

    async def close(self) -> None:
        """Cancel the writes that are running; never raises."""
        tasks = list(self._restoring.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _read(self, name: bytes, record: bytes) -> Mark:
        """Return the mark in ``record``; check each stamp once, as every hit reads its mark."""
        if not record:
            return Mark()
        digest = hashlib.sha256(name + record).digest()
        read = self._checked.get(digest)
        if read is None:
            read = read_mark(name, record, self._sealer.check_stamp)
            if read != Mark():
                self._checked[digest] = read
            if len(self._checked) > _MAX_CHECKED:
                self._checked.popitem(last=False)
        return read

    async def _records(self, names: Sequence[bytes]) -> list[bytes]:
        return await self._link.beginnings(names, [MAX_MARK_BYTES + 1] * len(names))

    async def _write(self, module_sha256: str) -> None:
        # Keep what other daemons wrote there meanwhile.
        name = self._names.mark(module_sha256)
        found, others = await read_strings([name], self._records)
        await self.discard(others)
        if record := found.get(name):
            self.marks.learn(module_sha256, self._read(name, record))
        value = write_mark(name, self.marks.of(module_sha256), self._sealer.stamp)
        await self._link.set(name, value, self._ttl_s)

    def _restore(self, module_sha256: str) -> None:
        if module_sha256 in self._restoring or len(self._restoring) >= _MAX_RESTORING:
            return

        async def restore() -> None:
            with contextlib.suppress(TierUnavailable):
                await self._write(module_sha256)
            # However often another client deletes the mark, write it at most this often.
            await asyncio.sleep(_RESTORED_EVERY_S)

        task = asyncio.create_task(restore())
        self._restoring[module_sha256] = task
        task.add_done_callback(lambda _: self._restoring.pop(module_sha256, None))
