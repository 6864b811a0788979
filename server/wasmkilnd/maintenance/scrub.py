"""Verify every stored value, and delete those that do not verify."""

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
from wasmkilnd.maintenance.orphans import FOR_EVER, Orphan, OrphanFinder
from wasmkilnd.model import Artifact

# Enough to hide the latency of the server; each holds some pieces of one value in memory.
_AT_ONCE = 4

# Two TTLs, each in whole seconds, are compared.
_ROUNDING_S = 2.0

OTHER_CODE = "other_code"
"""The cause for an artifact that differs from what its engine makes of the module."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that is bad."""

    name: bytes
    cause: str
    """A value of :class:`Cause`, or ``OTHER_CODE``."""
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
    """Values in another format, which are left alone."""
    gone: int = 0
    """Values that were deleted or expired while the scrub ran."""
    orphans: int = 0
    orphan_bytes: int = 0
    young_orphans: int = 0
    """Those whose value a daemon may still be writing, which are left alone."""

    @property
    def good(self) -> int:
        """Values that verified."""
        return self.artifacts + self.modules


class Scrub:
    """One scrub. Raises TierUnavailable.

    A value is deleted only if it fails to verify twice in a row and is still the one that failed:
    a daemon may be replacing it. If no value at all verifies, values of untrusted keys are kept,
    since the keys at hand are then most likely the wrong ones.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        reader: ValueReader,
        inventory: Inventory,
        orphans: OrphanFinder,
        *,
        dry_run: bool,
        report_finding: Callable[[Finding], None],
    ) -> None:
        self._link = link
        self._names = names
        self._reader = reader
        self._inventory = inventory
        self._finder = orphans
        self._dry_run = dry_run
        self._report_finding = report_finding
        self._untrusted: list[ValueKey] = []
        self._orphans: dict[bytes, int] = {}
        self._found_s = 0.0
        self.report = Scrubbed()
        self.good: dict[ValueKey, str] = {}
        """The artifacts that verified, and their engines' ids."""

    @property
    def trusts_no_value(self) -> bool:
        """Whether values of untrusted keys were kept because no value verified."""
        return bool(self._untrusted) and not self.report.good

    async def keys(self) -> list[ValueKey]:
        """Return all values that there are now."""
        found = [key async for page in self._inventory.key_pages() for key in page]
        self.report.other_format += len(self._inventory.other_format)
        return found

    async def verify(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        """Verify the values under ``keys``, some at a time; call ``advance`` for each."""
        await self._verify_all(keys, advance)
        untrusted, self._untrusted = self._untrusted, []
        await self._verify_all(untrusted, lambda: None)
        for key in self._untrusted:
            self._count(key, Cause.STRANGER.value, KEPT, deleted=False)

    async def find_orphans(self) -> None:
        """Remember the pieces that no value mentions now."""
        self._orphans = {
            orphan.name: orphan.ttl_s async for found in self._finder.orphans() for orphan in found
        }
        self._found_s = time.monotonic()

    async def sweep_orphans(self, older_than_s: float) -> None:
        """Delete the pieces that no value mentioned when they were found and none mentions now.

        Waits until ``older_than_s`` have passed between the two: a daemon writes a value after
        its pieces. A piece that a daemon wrote again meanwhile is kept: its TTL shows it.
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
        async for found in self._finder.orphans():
            new = [orphan for orphan in found if orphan.name not in seen]
            seen.update(orphan.name for orphan in new)
            old = [orphan for orphan in new if is_old(orphan)]
            self.report.young_orphans += len(new) - len(old)
            self.report.orphans += len(old)
            self.report.orphan_bytes += sum(orphan.size_bytes for orphan in old)
            if old and not self._dry_run:
                await self._link.delete([orphan.name for orphan in old])

    async def retract(self, key: ValueKey, value: bytes | None, why: str) -> None:
        """Count, report and delete ``value``, which had verified, because it is other code."""
        del self.good[key]
        self.report.artifacts -= 1
        await self._reject(key, value, OTHER_CODE, why)

    async def _reject(self, key: ValueKey, value: bytes | None, cause: str, why: str) -> None:
        """Count and report that ``value`` is bad; delete it if it is still there.

        None stands for what no daemon stores, which is deleted whatever it is by now. A dry run
        deletes nothing.
        """
        name = self._names.value(key)
        deleted = False
        if not self._dry_run:
            if value is None:
                [deleted] = await self._link.delete([name])
            else:
                parts = self._finder.parts_of(key, value)
                deleted = await self._link.delete_if(name, value, parts)
        self._count(key, cause, why, deleted=deleted)

    def _count(self, key: ValueKey, cause: str, why: str, *, deleted: bool) -> None:
        self.report.bad[cause] += 1
        self.report.deleted += deleted
        self._report_finding(Finding(self._names.value(key), cause, why, deleted))

    async def _verify_all(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        async def verify(key: ValueKey) -> None:
            await self._verify(key)
            advance()

        await for_each(keys, verify, limit=_AT_ONCE)

    async def _verify(self, key: ValueKey) -> None:
        value: bytes | None = None
        rejected = await self._rejection(key)
        if rejected and rejected.cause is not Cause.VERSION:
            # If the value read between two checks is still there at the end, it is what failed.
            value = await self._raw(key)
            rejected = await self._rejection(key)
        if rejected is None:
            return
        if rejected.cause is Cause.VERSION:
            self.report.other_format += 1
        elif rejected.cause is Cause.STRANGER and not self.report.good:
            self._untrusted.append(key)
        else:
            await self._reject(key, value, rejected.cause.value, rejected.why)

    async def _raw(self, key: ValueKey) -> bytes | None:
        try:
            return await self._reader.raw(key)
        except ValueRejected:
            return None  # Not a string, or longer than any value.

    async def _rejection(self, key: ValueKey) -> ValueRejected | None:
        """Verify one value, and count it if it is good or gone."""
        try:
            opened = await self._reader.check(key)
        except ValueRejected as rejected:
            forget_frames(rejected)  # The frames hold the value.
            return rejected
        if opened is None:
            self.report.gone += 1
        elif isinstance(opened.what, Artifact):
            self.report.artifacts += 1
            self.good[key] = sys.intern(opened.what.spec.engine.id)
        else:
            self.report.modules += 1
        return None


KEPT = "signed by an untrusted key, as all values are: kept"
