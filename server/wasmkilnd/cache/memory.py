"""The memory tier: an LRU of this process, bounded in bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from wasmkilnd.model import (
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    ExternType,
    Held,
    IsPinned,
    Kind,
    Module,
    TierUsage,
    nothing_pinned,
)
from wasmkilnd.slices import in_slices

_ENTRY_BYTES = 1024
"""What an entry costs on top of its bytes: objects, digests, the tier's tables."""
_EXTERN_BYTES = 72
"""What an import or export takes on top of its texts."""

_Line: TypeAlias = "OrderedDict[CacheKey | str, None]"


@dataclass(slots=True)
class _Entry:
    value: Artifact | Module
    # Stored, not computed again, so that exactly what was added is subtracted.
    size_bytes: int
    line: _Line


class MemoryTier:
    """Keeps the most recently used modules and artifacts, in one budget of ``limit_bytes``.

    What is of a pinned module is kept: it makes no room for others. All that is kept takes half
    of the budget at most; above that the least recently used of it are let go.

    No method but evict waits for anything, so concurrent use needs no lock. get takes constant
    time, and so does put, apart from the least recently used entries that it drops for room.
    """

    name = "memory"

    def __init__(self, limit_bytes: int, is_pinned: IsPinned = nothing_pinned) -> None:
        """``is_pinned`` returns whether a module is pinned; see ``keep_pinned``."""
        self._limit_bytes = limit_bytes
        self._is_pinned = is_pinned
        self._bytes = self._kept_bytes = 0
        self._evictions = self._let_go = 0
        # A module's key is its digest.
        self._entries: dict[CacheKey | str, _Entry] = {}
        # Each entry is in one of these, least recently used first.
        self._free: _Line = OrderedDict()
        self._kept: _Line = OrderedDict()
        self._keys_of: dict[str, dict[CacheKey, None]] = {}

    def get(self, key: CacheKey) -> Artifact | None:
        """Return the artifact under ``key`` as it was put, and make it the most recently used."""
        entry = self._touch(key)
        return entry.value if entry and isinstance(entry.value, Artifact) else None

    def get_module(self, sha256: str) -> Module | None:
        """Return the module with this digest, and make it the most recently used."""
        entry = self._touch(sha256)
        return entry.value if entry and isinstance(entry.value, Module) else None

    def put(self, value: Artifact | Module) -> None:
        """Store ``value``, unless it is larger than the whole tier."""
        if isinstance(value, Artifact):
            self._store(value.key, value, _artifact_bytes(value))
        else:
            self._store(value.sha256, value, len(value.wasm) + _ENTRY_BYTES)

    def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without making them recent."""
        return frozenset(key for key in keys if key in self._entries)

    def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each artifact, without making it recent."""
        found = {key: self._entries.get(key) for key in keys}
        return {key: entry.value.kind for key, entry in found.items() if entry}

    def artifacts_of(self, module_sha256: str) -> Sequence[Artifact]:
        """Return the artifacts of a module, without making them recent."""
        values = (self._entries[key].value for key in self._keys_of.get(module_sha256, ()))
        return [value for value in values if isinstance(value, Artifact)]

    async def evict(self, scope: EvictScope) -> Evicted:
        """Remove all in ``scope`` that is here now, in slices between which other tasks run."""

        def steps() -> Generator[None, None, Evicted]:
            removed = Evicted()
            for key in self._candidates(scope):
                entry = self._entries.get(key)
                if entry and _is_in(scope, entry) and scope.leaves(_module_of(key)):
                    removed += Evicted(pinned=1)
                elif entry and _is_in(scope, entry):
                    self._remove(key)
                    is_module = isinstance(entry.value, Module)
                    removed += Evicted(int(not is_module), int(is_module), entry.size_bytes)
                yield
            return removed

        return await in_slices(steps())

    def usage(self) -> TierUsage:
        """Return the exact figures."""
        return TierUsage(
            len(self._entries),
            self._bytes,
            self._limit_bytes,
            self._evictions,
            len(self._kept),
            self._kept_bytes,
            self._let_go,
        )

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
            for key in (*self._keys_of.get(module_sha256, ()), module_sha256):
                entry = self._entries.get(key)
                if entry is None or (entry.line is self._kept) == self._is_pinned(module_sha256):
                    continue
                if entry.line is self._kept:
                    self._put_in(self._free, key, entry)
                elif 2 * (self._kept_bytes + entry.size_bytes) <= self._limit_bytes:
                    self._put_in(self._kept, key, entry)

    def module_of(self, sha256: str) -> Module | None:
        """Return a module, without making it recent."""
        entry = self._entries.get(sha256)
        return entry.value if entry and isinstance(entry.value, Module) else None

    def pinned(self, modules: Iterable[str]) -> dict[str, Held]:
        """Return what is here of each of ``modules``."""
        return {module_sha256: self._part_of(module_sha256) for module_sha256 in modules}

    def holds(self, artifact: Artifact) -> bool:
        """Return whether this very object is here, without making it recent."""
        entry = self._entries.get(artifact.key)
        return entry is not None and entry.value is artifact

    def artifacts(self) -> Sequence[Artifact]:
        """Return every artifact, without making any recent."""
        values = (entry.value for entry in self._entries.values())
        return [value for value in values if isinstance(value, Artifact)]

    def drop(self, artifacts: Iterable[Artifact]) -> int:
        """Remove those of ``artifacts`` that are still here; return how many."""
        dropped = 0
        for artifact in artifacts:
            if self.holds(artifact):
                self._remove(artifact.key)
                dropped += 1
        return dropped

    def close(self) -> None:
        """Remove everything."""
        self._entries.clear()
        self._free.clear()
        self._kept.clear()
        self._keys_of.clear()
        self._bytes = self._kept_bytes = 0

    def _touch(self, key: CacheKey | str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.line.move_to_end(key)
        return entry

    def _store(self, key: CacheKey | str, value: Artifact | Module, size_bytes: int) -> None:
        old = self._entries.get(key)
        kept_bytes = self._kept_bytes - (old.size_bytes if old and old.line is self._kept else 0)
        if size_bytes > self._limit_bytes - kept_bytes:
            return  # It will never fit: not even an old entry of the same key makes room.
        if old:
            self._remove(key)  # First, so that an overwrite makes room for the difference only.
        self._make_room(size_bytes)
        entry = self._entries[key] = _Entry(value, size_bytes, self._free)
        self._free[key] = None
        self._bytes += size_bytes
        if self._is_pinned(_module_of(key)) and 2 * size_bytes <= self._limit_bytes:
            self._put_in(self._kept, key, entry)
            self._let_some_go()
        if isinstance(key, CacheKey):
            self._keys_of.setdefault(key.module_sha256, {})[key] = None

    def _make_room(self, size_bytes: int) -> None:
        while self._bytes + size_bytes > self._limit_bytes:
            self._remove(next(iter(self._free)))
            self._evictions += 1

    def _let_some_go(self) -> None:
        while 2 * self._kept_bytes > self._limit_bytes:
            key = next(iter(self._kept))
            self._put_in(self._free, key, self._entries[key])
            self._let_go += 1

    def _put_in(self, line: _Line, key: CacheKey | str, entry: _Entry) -> None:
        del entry.line[key]
        entry.line = line
        line[key] = None
        self._kept_bytes += entry.size_bytes if line is self._kept else -entry.size_bytes

    def _part_of(self, module_sha256: str) -> Held:
        part = Held()
        for key in (*self._keys_of.get(module_sha256, ()), module_sha256):
            if entry := self._entries.get(key):
                is_module = isinstance(entry.value, Module)
                part += Held(int(not is_module), int(is_module), entry.size_bytes)
        return part

    def _remove(self, key: CacheKey | str) -> _Entry:
        entry = self._entries.pop(key)
        del entry.line[key]
        self._bytes -= entry.size_bytes
        if entry.line is self._kept:
            self._kept_bytes -= entry.size_bytes
        if isinstance(key, CacheKey):
            siblings = self._keys_of[key.module_sha256]
            del siblings[key]
            if not siblings:
                del self._keys_of[key.module_sha256]
        return entry

    def _candidates(self, scope: EvictScope) -> list[CacheKey | str]:
        if scope.module_sha256:
            return [*self._keys_of.get(scope.module_sha256, ()), scope.module_sha256]
        return list(self._entries)


def _is_in(scope: EvictScope, entry: _Entry) -> bool:
    if not scope.engine_id:
        return True
    return isinstance(entry.value, Artifact) and entry.value.spec.engine.id == scope.engine_id


def _module_of(key: CacheKey | str) -> str:
    return key if isinstance(key, str) else key.module_sha256


def _artifact_bytes(artifact: Artifact) -> int:
    externs = (*artifact.imports, *artifact.exports)
    # A thousand imports with long names can take more room than the code. Those of an artifact
    # from Redis share equal texts, those of a compiled one do not: count each object once.
    texts = {id(text): text for each in externs for text in _texts(each)}
    return (
        sum(map(len, artifact.frames))
        + len(artifact.attestation)
        + len(externs) * _EXTERN_BYTES
        + sum(map(sys.getsizeof, texts.values()))
        + _ENTRY_BYTES
    )


def _texts(extern: ExternType) -> tuple[str, str, str, str]:
    return extern.module, extern.name, extern.kind, extern.type
