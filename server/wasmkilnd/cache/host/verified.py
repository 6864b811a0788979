"""Which entries this process has checked, so that it checks each once. Bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from wasmkilnd.cache.host.entry import EntryId
from wasmkilnd.model import Artifact, CacheKey, ExternType

_ENTRY_BYTES = 2048
_EXTERN_BYTES = 160


@dataclass(frozen=True, slots=True)
class Checked:
    """An entry that was checked: its artifact without frames, and which files they were."""

    artifact: Artifact
    identity: EntryId
    size_bytes: int


class Verified:
    """Remembers the entries that were used last, in ``limit_bytes``. Safe from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[CacheKey, Checked] = OrderedDict()
        self.epoch = 0
        """Changes when everything is forgotten: what was checked before counts no more."""

    def get(self, key: CacheKey) -> Checked | None:
        """Return what is remembered of an entry."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def add(self, artifact: Artifact, identity: EntryId, epoch: int) -> None:
        """Remember an entry that was checked in ``epoch``."""
        checked = Checked(artifact, identity, _size_of(artifact))
        with self._lock:
            if epoch != self.epoch:
                return
            self._drop(artifact.key)
            self._entries[artifact.key] = checked
            self._bytes += checked.size_bytes
            while self._bytes > self._limit_bytes:
                self._drop(next(iter(self._entries)))

    def forget(self, key: CacheKey) -> None:
        """Forget an entry."""
        with self._lock:
            self._drop(key)

    def forget_all(self) -> None:
        """Forget everything, and what is being checked now."""
        with self._lock:
            self.epoch += 1
            self._entries.clear()
            self._bytes = 0

    def _drop(self, key: CacheKey) -> None:
        if checked := self._entries.pop(key, None):
            self._bytes -= checked.size_bytes


def _size_of(artifact: Artifact) -> int:
    types = (*artifact.imports, *artifact.exports)
    return _ENTRY_BYTES + len(artifact.attestation) + sum(map(_extern_bytes, types))


def _extern_bytes(extern: ExternType) -> int:
    text = len(extern.module) + len(extern.name) + len(extern.kind) + len(extern.type)
    return text + _EXTERN_BYTES
