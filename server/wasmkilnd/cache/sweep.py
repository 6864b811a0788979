"""What is done in the shared tier by headers alone: eviction, and telling a kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from wasmkilnd.cache.codec import HEADER_OFFSET, engine_of, header_end, kind_of
from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.rejected import ValueRejected
from wasmkilnd.model import Evicted, EvictScope, Kind

# Holds the header of nearly every artifact; whole values are never read.
_BEGINNING_BYTES = 4096
_BATCH = 128


async def sweep(link: RedisLink, names: KeyNames, scope: EvictScope) -> Evicted:
    """Delete all in ``scope``: only keys of ours, by SCAN, in batches. Raises TierUnavailable."""
    if scope.module_sha256:
        gone = await _delete(link, names, [names.module(scope.module_sha256)])
        pattern = names.artifacts_pattern(scope.module_sha256)
        return gone + await _sweep(link, names, pattern, _take_all)
    if scope.engine_id:

        async def made_by_engine(keys: Sequence[bytes]) -> list[bytes]:
            return await _made_by(link, keys, scope.engine_id)

        return await _sweep(link, names, names.artifacts_pattern(), made_by_engine)
    return await _sweep(link, names, names.all_pattern(), _take_all)


async def kind_at(link: RedisLink, key: bytes) -> Kind | None:
    """Answer from what kind of module the artifact under ``key`` was made, if one is there.

    Raises TierUnavailable.
    """
    [start] = await link.beginnings([key], _BEGINNING_BYTES)
    try:
        return kind_of(await _with_header(link, key, start))
    except ValueRejected:
        return None


async def _with_header(link: RedisLink, key: bytes, start: bytes) -> bytes:
    """Answer ``start``, longer if it does not hold the whole header."""
    end = header_end(start[:HEADER_OFFSET])
    if end > len(start):
        [start] = await link.beginnings([key], end)
    return start


async def _sweep(
    link: RedisLink,
    names: KeyNames,
    pattern: bytes,
    choose: Callable[[Sequence[bytes]], Awaitable[Sequence[bytes]]],
) -> Evicted:
    gone = Evicted()
    async for found in link.scan(pattern):
        # The prefix may hold keys of another purpose: only the two kinds are ours to delete.
        keys = [key for key in found if names.is_artifact(key) or names.is_module(key)]
        for start in range(0, len(keys), _BATCH):
            gone += await _delete(link, names, await choose(keys[start : start + _BATCH]))
    return gone


async def _take_all(keys: Sequence[bytes]) -> Sequence[bytes]:
    return keys


async def _delete(link: RedisLink, names: KeyNames, keys: Sequence[bytes]) -> Evicted:
    lengths = await link.lengths(keys)
    existed = await link.delete(keys)
    gone = Evicted()
    for key, length, did in zip(keys, lengths, existed, strict=True):
        if did:
            is_module = names.is_module(key)
            gone += Evicted(int(not is_module), int(is_module), length)
    return gone


async def _made_by(link: RedisLink, keys: Sequence[bytes], engine_id: str) -> list[bytes]:
    chosen = []
    for key, start in zip(keys, await link.beginnings(keys, _BEGINNING_BYTES), strict=True):
        try:
            if engine_of(await _with_header(link, key, start)) == engine_id:
                chosen.append(key)
        except ValueRejected:
            pass  # Whose it is can't be told. Whoever reads it will delete it.
    return chosen
