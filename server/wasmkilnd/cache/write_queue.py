"""The queue of writes to one tier: its bounds, and what is dropped when it is full."""

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
    """Items in the order of their arrival, ``limit_bytes`` in all. A data structure only.

    When the queue is full it drops artifacts before modules, the oldest first: a missing
    artifact costs other daemons a compile, a missing module costs callers MODULE_NOT_LOADED.
    It always takes the newest item, and never drops a module for its own artifact or the other
    way round, so that both are written whatever their sizes.
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
        """Whether more than half of the room is taken."""
        return 2 * self._bytes > self._limit_bytes()

    def get(self, key: ItemKey) -> Item | None:
        """Return the item that waits under ``key``."""
        _, item = self._of(key).get(key, (0, None))
        return item

    def add(self, item: Item) -> list[Item]:
        """Append ``item``, replacing one with its key; return the items dropped for it."""
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
        """Put an item that was taken back at the front; return whether there was room for it."""
        key = key_of(item)
        line = self._of(key)
        if key in line or self._is_full_for(item):
            return False
        line[key] = -next(self._numbers), item
        line.move_to_end(key, last=False)
        self._bytes += size_of(item)
        return True

    def take(self) -> Item:
        """Remove and return the oldest item. The queue must not be empty."""
        heads = [next(iter(line.values())) for line in (self._modules, self._artifacts) if line]
        _, item = min(heads, key=lambda head: head[0])
        self.remove(key_of(item))
        return item

    def remove(self, key: ItemKey) -> None:
        """Remove the item under ``key``, if there is one."""
        _, item = self._of(key).pop(key, (0, None))
        if item is not None:
            self._bytes -= size_of(item)

    def clear(self) -> list[Item]:
        """Remove and return all items."""
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
        """Return the next item to drop for ``newest``; None if none may be dropped."""
        for line in (self._artifacts, self._modules):
            for _, item in line.values():
                if type(item) is type(newest) or module_of(item) != module_of(newest):
                    return item
        return None


def key_of(item: Item) -> ItemKey:
    """Return the key under which ``item`` is stored."""
    return item.key if isinstance(item, Artifact) else item.sha256


def size_of(item: Item) -> int:
    """Return how many bytes of ``item`` count."""
    return item.size_bytes if isinstance(item, Artifact) else len(item.wasm)


def module_of(item: Item) -> str:
    """Return the digest of the module that ``item`` is or was compiled from."""
    return item.module_sha256 if isinstance(item, Artifact) else item.sha256
