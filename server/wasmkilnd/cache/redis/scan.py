"""Read the heads of many values, with few of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.value_reader import in_thread_if_large
from wasmkilnd.cache.value.format import head_end
from wasmkilnd.cache.value.rejected import ValueRejected

T = TypeVar("T")

# Enough for the head of nearly every artifact; whole values are never read.
_BEGINNING_BYTES = 8192
_AT_ONCE = 128
_BYTES_AT_ONCE = 4 * 1024 * 1024


async def look_at_heads(
    link: GuardedRedis, names: Sequence[bytes], look: Callable[[bytes, bytes], T]
) -> tuple[dict[bytes, T], frozenset[bytes]]:
    """Return what ``look`` returns for each value, by name, and the names of other types' keys.

    ``look`` gets the name and the first bytes of the value: the whole head if there is one,
    nothing if there is no value. It runs in a thread if there is much to look at, and never
    twice at a time. Raises TierUnavailable.
    """
    looked: dict[bytes, T] = {}
    others: frozenset[bytes] = frozenset()
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        found, no_strings = await _read(link, dict.fromkeys(some, _BEGINNING_BYTES))
        others |= no_strings
        longer = {name: end for name, head in found.items() if (end := _end(head)) > len(head)}
        looked |= await _look({n: head for n, head in found.items() if n not in longer}, look)
        del found
        for batch in _batches(longer):
            again, no_strings = await _read(link, batch)
            others |= no_strings
            looked |= await _look(again, look)
    return looked, others


async def _read(
    link: GuardedRedis, lengths: Mapping[bytes, int]
) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    async def read(names: Sequence[bytes]) -> list[bytes]:
        return await link.beginnings(names, [lengths[name] for name in names])

    return await read_strings(list(lengths), read)


async def _look(heads: Mapping[bytes, bytes], look: Callable[[bytes, bytes], T]) -> dict[bytes, T]:
    def each() -> dict[bytes, T]:
        return {name: look(name, head) for name, head in heads.items()}

    return await in_thread_if_large(sum(map(len, heads.values())), each)


def _batches(lengths: Mapping[bytes, int]) -> Iterator[dict[bytes, int]]:
    batch: dict[bytes, int] = {}
    for name, length in lengths.items():
        if batch and sum(batch.values()) + length > _BYTES_AT_ONCE:
            yield batch
            batch = {}
        batch[name] = length
    if batch:
        yield batch


def _end(head: bytes) -> int:
    try:
        return head_end(head)
    except ValueRejected:
        return 0
