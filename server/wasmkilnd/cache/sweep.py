"""What is done in the shared tier by headers alone: eviction, and telling a kind."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from wasmkilnd.cache.codec import CheckStamp, head_end, open_artifact
from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.link import RedisLink
from wasmkilnd.cache.rejected import ValueRejected
from wasmkilnd.cache.strings import read_strings
from wasmkilnd.model import CacheKey, Evicted, EvictScope, Kind

# Holds the header of nearly every artifact; whole values are never read.
_BEGINNING_BYTES = 8192
_BYTES_AT_ONCE = 4 * 1024 * 1024
_BATCH = 128


async def sweep(link: RedisLink, names: KeyNames, scope: EvictScope) -> Evicted:
    """Delete all in ``scope``: only keys of ours, by SCAN, in batches. Raises TierUnavailable."""
    if scope.module_sha256:
        gone = Evicted()
        for pattern in (
            names.modules_pattern(scope.module_sha256),
            names.artifacts_pattern(scope.module_sha256),
            names.parts_pattern(scope.module_sha256),
        ):
            gone += await _sweep(link, names, pattern, _take_all)
        return gone
    if scope.engine_id:

        async def made_by_engine(keys: Sequence[bytes]) -> list[bytes]:
            return await _made_by(link, names, keys, scope.engine_id)

        return await _sweep(link, names, names.artifacts_pattern(), made_by_engine)
    return await _sweep(link, names, names.all_pattern(), _take_all)


async def kind_at(
    link: RedisLink, names: KeyNames, key: CacheKey, check: CheckStamp
) -> Kind | None:
    """Answer from what kind of module the artifact under ``key`` was made, if one is there.

    Raises TierUnavailable.
    """
    [head] = await heads(link, [names.artifact(key)])
    try:
        return open_artifact(head, key, check).what.kind
    except ValueRejected:
        return None


async def heads(link: RedisLink, keys: Sequence[bytes]) -> list[bytes]:
    """Answer the beginning of each value, which holds its whole head if it has one.

    Raises TierUnavailable.
    """
    found = await link.beginnings(keys, [_BEGINNING_BYTES] * len(keys))
    longer: dict[int, int] = {}
    for index, start in enumerate(found):
        with contextlib.suppress(ValueRejected):
            if (end := head_end(start)) > len(start):
                longer[index] = end
                if sum(longer.values()) > _BYTES_AT_ONCE:
                    await _read_again(link, keys, longer, found)
    await _read_again(link, keys, longer, found)
    return found


async def _read_again(
    link: RedisLink, keys: Sequence[bytes], longer: dict[int, int], found: list[bytes]
) -> None:
    """Put into ``found`` the beginnings that are ``longer``, by index; there are none then."""
    again = await link.beginnings([keys[index] for index in longer], list(longer.values()))
    for index, start in zip(longer, again, strict=True):
        found[index] = start
    longer.clear()


async def _sweep(
    link: RedisLink,
    names: KeyNames,
    pattern: bytes,
    choose: Callable[[Sequence[bytes]], Awaitable[Sequence[bytes]]],
) -> Evicted:
    gone = Evicted()
    async for found in link.scan(pattern):
        # The prefix may hold keys of another purpose: only values are to be deleted.
        keys = [key for key in found if names.is_value(key)]
        for start in range(0, len(keys), _BATCH):
            chosen = await choose(keys[start : start + _BATCH])
            for begin in range(0, len(chosen), _BATCH):
                gone += await _delete(link, names, chosen[begin : begin + _BATCH])
    return gone


async def _take_all(keys: Sequence[bytes]) -> Sequence[bytes]:
    return keys


async def _delete(link: RedisLink, names: KeyNames, keys: Sequence[bytes]) -> Evicted:
    lengths, _ = await read_strings(keys, link.lengths)
    existed = await link.delete(keys)
    gone = Evicted()
    for key, did in zip(keys, existed, strict=True):
        if did:
            # What somebody else put under our names goes too.
            size_bytes = lengths.get(key, 0)
            gone += Evicted(int(names.is_artifact(key)), int(names.is_module(key)), size_bytes)
    return gone


async def _made_by(
    link: RedisLink, names: KeyNames, keys: Sequence[bytes], engine_id: str
) -> list[bytes]:
    """Choose the artifacts of an engine, with all of their pieces.

    Their stamps are not looked at: who could forge one could delete the value just as well.
    """
    chosen = []
    found, _ = await read_strings(keys, partial(heads, link))
    for name, head in found.items():
        key = names.artifact_key(name)
        # What cannot be opened is nobody's that can be told: whoever reads it deletes it.
        with contextlib.suppress(ValueRejected):
            if (
                key
                and (opened := open_artifact(head, key, _anyone)).what.spec.engine.id == engine_id
            ):
                digests = [piece.sha256 for piece in opened.body.pieces[1:]]
                chosen += [name, *(names.artifact_part(key, digest) for digest in digests)]
    return chosen


def _anyone(message: bytes, stamp: bytes) -> None:
    return None
