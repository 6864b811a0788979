"""The memory tier: an LRU of this process, bounded in bytes.

What is encoded in it is decoded once for all callers that take no encoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import structlog

from wasmkilnd import model, wire
from wasmkilnd.cache.value import ValueRejected, unpacked_frames
from wasmkilnd.model import Artifact, CacheKey, Evicted, Held, Item, Module, RejectionCause
from wasmkilnd.waits.flights import in_slices

# What an entry costs on top of its bytes: objects, digests, the tier's tables.
_ENTRY_BYTES = 1024
# What an artifact costs besides: its header for callers, who renews and counts its uses, and the
# holes that reading it leaves in the heap.
_ARTIFACT_BYTES = 2048
# What an import or export takes on top of its texts.
_EXTERN_BYTES = 72

_Key: TypeAlias = "CacheKey | str"

log = structlog.get_logger("wasmkilnd.cache")


class _Line(OrderedDict[_Key, tuple[Item, int]]):
    """Entries with their sizes, the least recently used first.

    A size is stored, not computed again, so that exactly what was added is subtracted.
    """

    bytes = 0

    def add(self, key: _Key, entry: tuple[Item, int]) -> None:
        """Add an entry as the most recently used."""
        self[key] = entry
        self.bytes += entry[1]

    def take(self, key: _Key) -> tuple[Item, int]:
        """Remove an entry, and return it."""
        entry = self.pop(key)
        self.bytes -= entry[1]
        return entry


class MemoryTier:
    """Keeps the most recently used modules and artifacts, in one budget of ``limit_bytes``.

    What is of a pinned module is kept: it makes no room for others. All that is kept takes half
    of the budget at most; above that the least recently used of it are let go.

    No method but evict waits for anything, so concurrent use needs no lock. get takes constant
    time, and so does put, apart from the least recently used entries that it drops for room.
    """

    name = "memory"

    def __init__(self, limit_bytes: int, is_pinned: model.IsPinned = model.nothing_pinned) -> None:
        """``is_pinned`` returns whether a module is pinned; see ``keep_pinned``."""
        self._limit_bytes, self._is_pinned = limit_bytes, is_pinned
        self._evictions = self._let_go = 0
        # Each entry is in one of these.
        self._free, self._kept = _Line(), _Line()
        # In order: an eviction counts what goes in the order in which it came.
        self._keys_of: dict[str, dict[_Key, None]] = {}

    def get(self, key: _Key) -> Any:
        """Return what was put under ``key``, and make it the most recently used."""
        for line in (self._free, self._kept):
            if entry := line.get(key):
                line.move_to_end(key)
                return entry[0]
        return None

    def peek(self, key: _Key) -> Item | None:
        """Return what was put under ``key``, without making it recent."""
        entry = self._free.get(key) or self._kept.get(key)
        return entry[0] if entry else None

    def fits(self, size_bytes: int) -> bool:
        """Return whether there can be room for so much, whatever else goes. Any thread may ask."""
        return size_bytes <= self._limit_bytes - self._kept.bytes

    def put(self, value: Item) -> bool:
        """Store ``value``; return False for one that is larger than the whole tier."""
        key, size_bytes = value.key, _size_of(value)
        if not self.fits(size_bytes):
            return False  # It will never fit.
        if self.peek(key):
            self._remove(key)  # First, so that an overwrite makes room for the difference only.
        self._make_room(size_bytes)
        keeps = self._is_pinned(value.module_sha256) and 2 * size_bytes <= self._limit_bytes
        (self._kept if keeps else self._free).add(key, (value, size_bytes))
        self._keys_of.setdefault(value.module_sha256, {})[key] = None
        self._let_some_go()
        return True

    async def evict(self, scope: model.EvictScope) -> Evicted:
        """Remove all in ``scope`` that is here now, in slices between which other tasks run."""
        of_module = list(self._keys_of.get(scope.module_sha256, ()))
        keys = of_module if scope.module_sha256 else [*self._free, *self._kept]

        removed = Evicted()

        def steps() -> Iterator[None]:
            nonlocal removed
            for key in keys:
                value = self.peek(key)
                if value and scope.removes(value):
                    removed += Evicted(*_counts(self._remove(key)))
                elif value and scope.covers(value):
                    removed += Evicted(pinned=1)
                yield

        await in_slices(steps())
        return removed

    def usage(self) -> model.TierUsage:
        """Return the exact figures."""
        free, kept = self._free, self._kept
        whole = len(free) + len(kept), free.bytes + kept.bytes, self._limit_bytes, self._evictions
        return model.TierUsage(*whole, len(kept), kept.bytes, self._let_go)

    def resize(self, limit_bytes: int) -> None:
        """Change the limit; drop the least recently used entries if there is less room now."""
        self._limit_bytes = limit_bytes
        self._let_some_go()
        self._make_room(0)

    def keep_pinned(self, modules: Iterable[str]) -> None:
        """Hold what is here of those of ``modules`` that are pinned by now, and no others.

        What would take more than half of the budget together is not kept.
        """
        for module_sha256 in modules:
            is_pinned = self._is_pinned(module_sha256)
            source, target = (self._free, self._kept) if is_pinned else (self._kept, self._free)
            for key in filter(source.__contains__, self._keys_of.get(module_sha256, ())):
                kept_bytes = self._kept.bytes + source[key][1]
                if not is_pinned or 2 * kept_bytes <= self._limit_bytes:
                    target.add(key, source.take(key))

    def pinned(self, modules: Iterable[str]) -> dict[str, Held]:
        """Return what is here of each of ``modules``."""
        found = dict.fromkeys(modules, Held())
        for module_sha256 in found:
            for key in self._keys_of.get(module_sha256, ()):
                found[module_sha256] += Held(*_counts(self._free.get(key) or self._kept[key]))
        return found

    def artifacts_of(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module, without making them recent."""
        values = map(self.peek, self._keys_of.get(module_sha256, ()))
        return [value for value in values if isinstance(value, Artifact)]

    def holds(self, artifact: Artifact) -> bool:
        """Return whether this very object is here, without making it recent."""
        return self.peek(artifact.key) is artifact

    def artifacts(self) -> Sequence[Artifact]:
        """Return every artifact, without making any recent."""
        entries = (*self._free.values(), *self._kept.values())
        return [value for value, _ in entries if isinstance(value, Artifact)]

    def drop(self, artifacts: Iterable[Artifact]) -> int:
        """Remove those of ``artifacts`` that are still here; return how many."""
        here = {artifact for artifact in artifacts if self.holds(artifact)}
        for artifact in here:
            self._remove(artifact.key)
        return len(here)

    def close(self) -> None:
        """Remove everything."""
        self._free, self._kept, self._keys_of = _Line(), _Line(), {}

    def _make_room(self, size_bytes: int) -> None:
        while self._free.bytes + self._kept.bytes + size_bytes > self._limit_bytes:
            self._remove(next(iter(self._free)))
            self._evictions += 1

    def _let_some_go(self) -> None:
        while 2 * self._kept.bytes > self._limit_bytes:
            key = next(iter(self._kept))
            self._free.add(key, self._kept.take(key))
            self._let_go += 1

    def _remove(self, key: _Key) -> tuple[Item, int]:
        entry = (self._free if key in self._free else self._kept).take(key)
        siblings = self._keys_of[entry[0].module_sha256]
        del siblings[key]
        if not siblings:
            del self._keys_of[entry[0].module_sha256]
        return entry


class Decoder:
    """Decodes artifacts of one namespace, each once at a time. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        keep: Callable[[Artifact], None],
        forget: Callable[[Artifact], Awaitable[None]],
    ) -> None:
        """``keep`` stores what was decoded, and ``forget`` removes what cannot be."""
        self._memory, self._keep, self._forget = memory, keep, forget
        self._decoding: dict[Artifact, tuple[Artifact, asyncio.Task[Artifact | None]]] = {}

    async def as_accepted(self, artifact: Artifact, accept: frozenset[str]) -> Artifact | None:
        """Return an artifact of memory as it is, or decoded: then its frames may be ``coming``.

        None if the first cannot be decoded. A trusted key signed these bytes, so whoever stored
        them was broken.
        """
        if not artifact.encoding or artifact.encoding in accept:
            return artifact
        if artifact.size_bytes <= wire.ONE_MESSAGE_BYTES:  # Sharing it takes longer.
            return await self._decode(artifact)
        if artifact not in self._decoding:
            loop = asyncio.get_running_loop()
            coming = [loop.create_future() for _ in artifact.frames]
            plain = dataclasses.replace(artifact, frames=(), encoding="", coming=coming)
            self._decoding[artifact] = plain, loop.create_task(self._decode(artifact, coming))
        plain, _ = self._decoding[artifact]
        with contextlib.suppress(ValueRejected):
            await asyncio.shield(plain.coming[0])
            return plain
        return None

    async def _decode(
        self, artifact: Artifact, coming: Sequence[asyncio.Future[bytes]] = ()
    ) -> Artifact | None:
        """Decode an artifact of memory for all callers, frame by frame; then keep that instead.

        Drop it if it cannot be decoded, so that it is compiled again.
        """
        call, frames = asyncio.get_running_loop().call_soon_threadsafe, list[bytes]()

        def decode() -> None:
            for one, decoded in zip(coming, unpacked_frames(artifact), strict=True):
                frames.append(decoded)
                call(one.set_result, decoded)

        try:
            if coming:
                await asyncio.to_thread(decode)
            else:
                frames += unpacked_frames(artifact)
        except Exception as failure:  # Whatever it is, nobody may wait for a frame for ever.
            why = failure.why if isinstance(failure, ValueRejected) else repr(failure)
            log.warning("cannot decode an artifact", why=why)
            self._memory.drop([artifact])
            for one in coming:
                if not one.done():
                    one.set_exception(ValueRejected(RejectionCause.FORMAT, why))
                    one.exception()  # Perhaps nobody waits for it.
            if isinstance(failure, ValueRejected):
                await self._forget(artifact)
            return None
        else:
            found = dataclasses.replace(artifact, frames=tuple(frames), encoding="")
            if self._memory.holds(artifact):
                self._keep(found)
            return found
        finally:
            self._decoding.pop(artifact, None)


def _counts(entry: tuple[Item, int]) -> tuple[int, int, int]:
    """Return how many artifacts, modules and bytes an entry is."""
    is_module = isinstance(entry[0], Module)
    return int(not is_module), int(is_module), entry[1]


def _size_of(value: Item) -> int:
    if isinstance(value, Module):
        return value.size_bytes + _ENTRY_BYTES
    externs = (*value.imports, *value.exports)
    # A thousand imports with long names can take more room than the code. Equal texts count again
    # and again, though those of an artifact from Redis are one object.
    texts = (text for each in externs for text in (each.module, each.name, each.kind, each.type))
    externs_bytes = len(externs) * _EXTERN_BYTES + sum(map(sys.getsizeof, texts))
    payload_bytes = sum(map(len, value.frames)) + len(value.attestation)
    return payload_bytes + externs_bytes + _ENTRY_BYTES + _ARTIFACT_BYTES
