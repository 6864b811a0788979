"""Verifying every stored value, and deleting those that do not verify."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wasmkilnd.cache.redis.concurrency import for_each
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.errors import forget_frames
from wasmkilnd.maintenance.inventory import Inventory
from wasmkilnd.maintenance.orphans import FOR_EVER, Leftovers, Orphan
from wasmkilnd.model import Artifact

# Enough to hide the way to the server; each holds some pieces of one value in memory.
_AT_ONCE = 4

# A time to live is told in whole seconds, twice.
_ROUNDING_S = 2.0

OTHER_CODE = "other_code"
"""The cause of an artifact that is not what its engine makes of the module."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that is bad."""

    name: bytes
    cause: str
    """Of :class:`Cause`, or ``OTHER_CODE``."""
    why: str
    deleted: bool


@dataclass(slots=True)
class Scrubbed:
    """What a scrub found."""

    artifacts: int = 0
    """Those that are good."""
    modules: int = 0
    """Those that are good."""
    bad: Counter[str] = field(default_factory=Counter)
    """By cause."""
    deleted: int = 0
    other_format: int = 0
    """Values in the format of another version, which are left alone."""
    gone: int = 0
    """Values that went while the scrub ran."""
    orphans: int = 0
    orphan_bytes: int = 0
    young_orphans: int = 0
    """Those whose value may still be on its way, which are left alone."""

    @property
    def good(self) -> int:
        """Values that verified."""
        return self.artifacts + self.modules


class Scrub:
    """One scrub. Raises TierUnavailable.

    A value is deleted only if it does not verify twice in a row, and if it is still the one
    that was judged: a daemon may have been replacing it. Where no value at all verifies, those
    of strangers are kept: the keys at hand are then most likely the wrong ones.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        reader: ValueReader,
        inventory: Inventory,
        leftovers: Leftovers,
        *,
        dry_run: bool,
        tell: Callable[[Finding], None],
    ) -> None:
        self._link = link
        self._names = names
        self._reader = reader
        self._inventory = inventory
        self._leftovers = leftovers
        self._dry_run = dry_run
        self._tell = tell
        self._strangers: list[ValueKey] = []
        self._orphans: dict[bytes, int] = {}
        self._found_s = 0.0
        self.report = Scrubbed()
        self.good: dict[ValueKey, str] = {}
        """The artifacts that verified, and their engines' ids."""

    @property
    def believes_nobody(self) -> bool:
        """Whether strangers' values were kept, as no value verified."""
        return bool(self._strangers) and not self.report.good

    async def keys(self) -> list[ValueKey]:
        """Return all values that there are now."""
        found = [key async for page in self._inventory.key_pages() for key in page]
        self.report.other_format += len(self._inventory.other_format)
        return found

    async def verify(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        """Verify the values under ``keys``, some at a time; tell ``advance`` of each."""
        await self._verify_all(keys, advance)
        strangers, self._strangers = self._strangers, []
        await self._verify_all(strangers, lambda: None)
        for key in self._strangers:
            self._count(key, Cause.STRANGER.value, _KEPT, deleted=False)

    async def find_orphans(self) -> None:
        """Take note of the pieces that no value mentions now."""
        self._orphans = {
            orphan.name: orphan.ttl_s
            async for found in self._leftovers.orphans()
            for orphan in found
        }
        self._found_s = time.monotonic()

    async def sweep_orphans(self, older_than_s: float) -> None:
        """Delete the pieces that no value mentions, neither now nor when they were found, which
        is ``older_than_s`` ago: if it is less, the rest of that is waited for.

        A daemon writes a value after its pieces. One that writes a piece of the same name
        anew begins its life anew, and that shows.
        """
        if not self._orphans:
            return
        await asyncio.sleep(max(0.0, self._found_s + older_than_s - time.monotonic()))
        passed_s = time.monotonic() - self._found_s

        def is_old(orphan: Orphan) -> bool:
            ttl_s = self._orphans.get(orphan.name)
            if ttl_s is None or FOR_EVER in (ttl_s, orphan.ttl_s):
                return ttl_s == orphan.ttl_s
            return ttl_s - orphan.ttl_s > passed_s - _ROUNDING_S

        seen: set[bytes] = set()
        async for found in self._leftovers.orphans():
            new = [orphan for orphan in found if orphan.name not in seen]
            seen.update(orphan.name for orphan in new)
            old = [orphan for orphan in new if is_old(orphan)]
            self.report.young_orphans += len(new) - len(old)
            self.report.orphans += len(old)
            self.report.orphan_bytes += sum(orphan.size_bytes for orphan in old)
            if old and not self._dry_run:
                await self._link.delete([orphan.name for orphan in old])

    async def retract(self, key: ValueKey, value: bytes | None, why: str) -> None:
        """Count, tell and delete ``value``, which was found good, as bad: it is of other code."""
        del self.good[key]
        self.report.artifacts -= 1
        await self._condemn(key, value, OTHER_CODE, why)

    async def _condemn(self, key: ValueKey, value: bytes | None, cause: str, why: str) -> None:
        """Count and tell that ``value`` is bad; delete it if it is still there, unless this is
        a dry run. None is for what no daemon stores under any circumstances.
        """
        name = self._names.value(key)
        deleted = False
        if not self._dry_run:
            if value is None:
                [deleted] = await self._link.delete([name])
            else:
                parts = self._leftovers.parts_of(key, value)
                deleted = await self._link.delete_if(name, value, parts)
        self._count(key, cause, why, deleted=deleted)

    def _count(self, key: ValueKey, cause: str, why: str, *, deleted: bool) -> None:
        self.report.bad[cause] += 1
        self.report.deleted += deleted
        self._tell(Finding(self._names.value(key), cause, why, deleted))

    async def _verify_all(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        async def verify(key: ValueKey) -> None:
            await self._verify(key)
            advance()

        await for_each(keys, verify, limit=_AT_ONCE)

    async def _verify(self, key: ValueKey) -> None:
        value: bytes | None = None
        rejected = await self._rejection(key)
        if rejected and rejected.cause is not Cause.VERSION:
            # What is read between two judgements and is there at the end was judged bad.
            value = await self._raw(key)
            rejected = await self._rejection(key)
        if rejected is None:
            return
        if rejected.cause is Cause.VERSION:
            self.report.other_format += 1
        elif rejected.cause is Cause.STRANGER and not self.report.good:
            self._strangers.append(key)
        else:
            await self._condemn(key, value, rejected.cause.value, rejected.why)

    async def _raw(self, key: ValueKey) -> bytes | None:
        try:
            return await self._reader.raw(key)
        except ValueRejected:
            return None  # No string, or longer than any.

    async def _rejection(self, key: ValueKey) -> ValueRejected | None:
        """Verify one value, and count it if it is good or gone."""
        try:
            opened = await self._reader.check(key)
        except ValueRejected as rejected:
            forget_frames(rejected)  # They hold the value.
            return rejected
        if opened is None:
            self.report.gone += 1
        elif isinstance(opened.what, Artifact):
            self.report.artifacts += 1
            self.good[key] = sys.intern(opened.what.spec.engine.id)
        else:
            self.report.modules += 1
        return None


_KEPT = "signed by a key that is not trusted, as all values are: kept"
