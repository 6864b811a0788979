"""What waits to be written to the shared tier, within bounds, and what makes room for what."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from wasmkilnd.model import Artifact, CacheKey, Module

Item: TypeAlias = "Artifact | Module"
ItemKey: TypeAlias = "CacheKey | str"

_MAX_ITEMS = 10_000


class WriteQueue:
    """Items in the order in which they came, ``limit_bytes`` in all. Data only.

    When it is full, artifacts make room before modules, each the oldest first: a missing
    artifact costs other daemons a compile, a missing module costs callers MODULE_NOT_LOADED.
    The newest item is always taken, and a module and its artifact never make room for each
    other: so both fit whatever their sizes.
    """

    def __init__(self, limit_bytes: Callable[[], int], max_items: int = _MAX_ITEMS) -> None:
        self._limit_bytes = limit_bytes
        self._max_items = max_items
        self._artifacts: OrderedDict[ItemKey, tuple[int, Item]] = OrderedDict()
        self._modules: OrderedDict[ItemKey, tuple[int, Item]] = OrderedDict()
        self._numbers = itertools.count()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._artifacts) + len(self._modules)

    def __iter__(self) -> Iterator[Item]:
        for _, item in (*self._modules.values(), *self._artifacts.values()):
            yield item

    @property
    def is_half_full(self) -> bool:
        """Whether what comes next may find no room."""
        return 2 * self._bytes > self._limit_bytes()

    def get(self, key: ItemKey) -> Item | None:
        """Return what waits under ``key``."""
        _, item = self._of(key).get(key, (0, None))
        return item

    def add(self, item: Item) -> list[Item]:
        """Append ``item``, in the place of one with its key; return what was dropped for it."""
        key = key_of(item)
        self.remove(key)
        dropped = []
        while self._is_full_for(item) and (oldest := self._first_to_go(item)):
            dropped.append(oldest)
            self.remove(key_of(oldest))
        self._of(key)[key] = next(self._numbers), item
        self._bytes += size_of(item)
        return dropped

    def put_back(self, item: Item) -> bool:
        """Put ``item``, which was taken, first again; return whether there was room for it."""
        key = key_of(item)
        line = self._of(key)
        if key in line or self._is_full_for(item):
            return False
        line[key] = -next(self._numbers), item
        line.move_to_end(key, last=False)
        self._bytes += size_of(item)
        return True

    def take(self) -> Item:
        """Remove and return the item that came first. The queue must not be empty."""
        heads = [next(iter(line.values())) for line in (self._modules, self._artifacts) if line]
        _, item = min(heads, key=lambda head: head[0])
        self.remove(key_of(item))
        return item

    def remove(self, key: ItemKey) -> None:
        """Remove what waits under ``key``, if anything does."""
        _, item = self._of(key).pop(key, (0, None))
        if item is not None:
            self._bytes -= size_of(item)

    def clear(self) -> list[Item]:
        """Remove and return all."""
        items = list(self)
        self._artifacts.clear()
        self._modules.clear()
        self._bytes = 0
        return items

    def _of(self, key: ItemKey) -> OrderedDict[ItemKey, tuple[int, Item]]:
        return self._artifacts if isinstance(key, CacheKey) else self._modules

    def _is_full_for(self, item: Item) -> bool:
        return self._bytes + size_of(item) > self._limit_bytes() or len(self) >= self._max_items

    def _first_to_go(self, newest: Item) -> Item | None:
        """Return what makes room for ``newest``, if anything may."""
        for line in (self._artifacts, self._modules):
            for _, item in line.values():
                if type(item) is type(newest) or module_of(item) != module_of(newest):
                    return item
        return None


def key_of(item: Item) -> ItemKey:
    """Return under which key ``item`` is stored."""
    return item.key if isinstance(item, Artifact) else item.sha256


def size_of(item: Item) -> int:
    """Return the bytes of ``item`` that count."""
    return item.size_bytes if isinstance(item, Artifact) else len(item.wasm)


def module_of(item: Item) -> str:
    """Return the digest of the module that ``item`` is, or was made from."""
    return item.module_sha256 if isinstance(item, Artifact) else item.sha256
