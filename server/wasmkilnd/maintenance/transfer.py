"""Copy values from a shared tier into an archive, and from an archive into another tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.value_reader import (
    RateLimiter,
    ValueReader,
    Whole,
    check_size,
    in_thread_if_large,
)
from wasmkilnd.cache.redis.value_writer import ValueWriter
from wasmkilnd.cache.value.format import Opened, head_end
from wasmkilnd.cache.value.marks import EVERYTHING, MAX_MARK_BYTES, Marks, read_mark
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.cache.value.verify import WholeCheck, open_unnamed
from wasmkilnd.maintenance.archive import ArchiveReader, ArchiveWriter, Member
from wasmkilnd.maintenance.inventory import Listed
from wasmkilnd.model import Artifact, Module
from wasmkilnd.signing.sealer import Sealer

Tell = Callable[[str, ValueRejected], None]
"""Called with the name of a value that was left out, and why."""

# The first bytes of a value, which hold the head's length.
_START_BYTES = 9


@dataclass(slots=True)
class Moved:
    """What was copied, and what was not."""

    artifacts: int = 0
    modules: int = 0
    stored_bytes: int = 0
    signers: Counter[str] = field(default_factory=Counter)
    """Values by the id of the key that signed them."""
    refused: Counter[str] = field(default_factory=Counter)
    """Values that do not verify, by cause."""
    gone: int = 0
    """Exporting: values that were deleted or expired meanwhile."""
    kept: int = 0
    """Importing: values that were there already."""
    duplicates: int = 0
    """Importing: values that came more than once."""

    @property
    def values(self) -> int:
        """The number of copied values."""
        return self.artifacts + self.modules

    def count(self, whole: Whole) -> None:
        """Count a copied value."""
        self.stored_bytes += whole.stored_bytes
        self.signers[whole.signer] += 1
        if whole.key.artifact:
            self.artifacts += 1
        else:
            self.modules += 1


async def export(
    listed: Sequence[Listed],
    reader: ValueReader,
    names: KeyNames,
    archive: ArchiveWriter,
    limit_bytes: int,
    tell: Tell,
    advance: Callable[[Listed], None],
) -> Moved:
    """Write the values in ``listed`` that verify as a whole. Raises TierUnavailable.

    None of them is larger than ``limit_bytes`` when unpacked.
    """
    moved = Moved()
    for value in listed:
        try:
            whole = await reader.whole(value.key, limit_bytes)
        except ValueRejected as rejected:
            moved.refused[rejected.cause.value] += 1
            tell(names.value(value.key).decode(), rejected)
        else:
            if whole is None:
                moved.gone += 1
            else:
                archive.add(whole, value.ttl_s)
                moved.count(whole)
        advance(value)
    archive.close()
    return moved


class Import:
    """Stores the values of an archive that verify as a whole, and no others.

    Each value keeps the TTL that it had, ``ttl_s`` at most; with ``fixed_ttl_s`` each gets that.
    """

    def __init__(
        self,
        link: GuardedRedis,
        names: KeyNames,
        verifier: Sealer,
        *,
        limit_bytes: int,
        ttl_s: int,
        fixed_ttl_s: int = 0,
        replace: bool = False,
        tell: Tell,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._link = link
        self._names = names
        self._verifier = verifier
        self._limit_bytes = limit_bytes
        self._ttl_s = ttl_s
        self._fixed_ttl_s = fixed_ttl_s
        self._replace = replace
        self._tell = tell
        self._writer = ValueWriter(link, names, limiter)
        self._seen: set[ValueKey] = set()
        self._marks = Marks()
        self.moved = Moved()

    async def run(self, archive: ArchiveReader, advance: Callable[[int], None]) -> None:
        """Store what is in ``archive``; call ``advance`` with the size of each value.

        Raises ArchiveBroken and TierUnavailable, after which ``moved`` says what was stored.
        """
        for number, member in enumerate(archive.members(), 1):
            what = f"value {number}"
            try:
                head = self._head_of(member)
                key, opened = open_unnamed(head, self._verifier)
                what = self._names.value(key).decode()
                await self._take(member, head, key, opened)
            except ValueRejected as rejected:
                self.moved.refused[rejected.cause.value] += 1
                self._tell(what, rejected)
            advance(member.size_bytes)

    def _head_of(self, member: Member) -> bytes:
        start = member.read(_START_BYTES)
        return start + member.read(head_end(start) - len(start))

    async def _take(
        self, member: Member, head: bytes, key: ValueKey, opened: Opened[Artifact | Module]
    ) -> None:
        if member.size_bytes != len(head) + opened.body.stored_bytes:
            raise ValueRejected(Cause.FORMAT, "the value's length is not what its head says")
        check_size(opened.body, self._limit_bytes)
        if isinstance(opened.what, Artifact):
            await self._refuse_if_evicted(opened.what)
        if key in self._seen:
            self.moved.duplicates += 1
            return
        [there] = await self._link.exists([self._names.value(key)])
        if there and not self._replace:
            self.moved.kept += 1
        else:
            pieces = await self._pieces_of(member, opened)
            whole = Whole(key, opened, head + b"".join(pieces[:1]), pieces[1:])
            await self._store(whole, head, pieces, member.ttl_s)
        self._seen.add(key)

    async def _refuse_if_evicted(self, artifact: Artifact) -> None:
        """Raise ValueRejected for an artifact that was evicted here: no daemon would serve it."""
        by_name = {self._names.mark(whose): whose for whose in (artifact.module_sha256, EVERYTHING)}

        async def read(names: Sequence[bytes]) -> list[bytes]:
            return await self._link.beginnings(names, [MAX_MARK_BYTES + 1] * len(names))

        found, _ = await read_strings(list(by_name), read)
        for name, record in found.items():
            mark = read_mark(name, record, self._verifier.check_stamp)
            self._marks.learn(by_name[name], mark)
        self._marks.check(artifact)

    async def _pieces_of(self, member: Member, opened: Opened[Artifact | Module]) -> list[bytes]:
        """Return all pieces of a value, verified together with their payload."""
        check, pieces = WholeCheck(opened), []
        for piece in opened.body.pieces:
            stored = member.read(piece.size_bytes)
            await in_thread_if_large(len(stored), check.take, [stored])
            pieces.append(stored)
        check.finish()
        return pieces

    async def _store(self, whole: Whole, head: bytes, pieces: Sequence[bytes], left_s: int) -> None:
        ttl_s = self._fixed_ttl_s or min(self._ttl_s, left_s if left_s >= 0 else self._ttl_s) or 1
        stored = list(zip(pieces, whole.opened.body.pieces, strict=True))
        if await self._writer.copy(whole.key, head, stored, ttl_s, replace=self._replace):
            self.moved.count(whole)
        else:
            self.moved.kept += 1  # A daemon stored it in the meantime.
