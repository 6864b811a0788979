"""Verifying every stored value, and deleting those that do not verify."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wasmkilnd.cache.at_once import each
from wasmkilnd.cache.inventory import Inventory
from wasmkilnd.cache.keys import KeyNames, ValueKey
from wasmkilnd.cache.leftovers import Leftovers, Orphan
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.pieces import PARTS_OUTLIVE_S
from wasmkilnd.cache.reader import ValueReader
from wasmkilnd.cache.rejected import Cause, ValueRejected
from wasmkilnd.model import Artifact

# Enough to hide the way to the server; each holds some pieces of one value in memory.
_AT_ONCE = 4

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
    """Orphans whose value may still be on its way, which are left alone."""

    @property
    def good(self) -> int:
        """Values that verified."""
        return self.artifacts + self.modules


class Scrub:
    """One scrub. Raises TierUnavailable.

    A value is deleted only if it does not verify twice in a row: a daemon may have been
    replacing it. Where no value at all verifies, those of strangers are kept: the keys at
    hand are then most likely the wrong ones.
    """

    def __init__(
        self,
        link: RedisLink,
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
        self.report = Scrubbed()
        self.good: dict[ValueKey, str] = {}
        """The artifacts that verified, and their engines' ids."""

    @property
    def believes_nobody(self) -> bool:
        """Whether strangers' values were kept, as no value verified."""
        return bool(self._strangers) and not self.report.good

    async def keys(self) -> list[ValueKey]:
        """Answer all values that there are now."""
        found = [key async for page in self._inventory.key_pages() for key in page]
        self.report.other_format += len(self._inventory.other_format)
        return found

    async def verify(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        """Verify the values under ``keys``, some at a time; tell ``advance`` of each."""
        await self._verify_all(keys, advance)
        strangers, self._strangers = self._strangers, []
        await self._verify_all(strangers, lambda: None)
        for key in self._strangers:
            await self._condemn(key, Cause.STRANGER.value, _KEPT, delete=False)

    async def sweep_orphans(self, older_than_s: float, ttl_s: int) -> None:
        """Delete the pieces that no value mentions and that are older than ``older_than_s``.

        A daemon writes a value after its pieces. How old one is, its time to live tells,
        of which ``ttl_s`` is what daemons give to values.
        """
        whole_s = ttl_s + PARTS_OUTLIVE_S

        def is_old(orphan: Orphan) -> bool:
            return whole_s - orphan.ttl_s >= older_than_s

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

    async def retract(self, key: ValueKey, why: str) -> None:
        """Count, tell and delete as bad what was found good: it is of other code."""
        del self.good[key]
        self.report.artifacts -= 1
        await self._condemn(key, OTHER_CODE, why)

    async def _condemn(self, key: ValueKey, cause: str, why: str, *, delete: bool = True) -> None:
        """Count and tell that a value is bad; delete it, unless this is a dry run."""
        name = self._names.value(key)
        delete = delete and not self._dry_run
        if delete:
            parts = await self._leftovers.parts_of(key)
            await self._link.delete([name, *parts])
        self.report.bad[cause] += 1
        self.report.deleted += delete
        self._tell(Finding(name, cause, why, delete))

    async def _verify_all(self, keys: Sequence[ValueKey], advance: Callable[[], None]) -> None:
        async def verify(key: ValueKey) -> None:
            await self._verify(key)
            advance()

        await each(keys, verify, _AT_ONCE)

    async def _verify(self, key: ValueKey) -> None:
        rejected = await self._rejection(key)
        if rejected and rejected.cause is not Cause.VERSION:
            rejected = await self._rejection(key)
        if rejected is None:
            return
        if rejected.cause is Cause.VERSION:
            self.report.other_format += 1
        elif rejected.cause is Cause.STRANGER and not self.report.good:
            self._strangers.append(key)
        else:
            await self._condemn(key, rejected.cause.value, rejected.why)

    async def _rejection(self, key: ValueKey) -> ValueRejected | None:
        """Verify one value, and count it if it is good or gone."""
        try:
            opened = await self._reader.check(key)
        except ValueRejected as rejected:
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
