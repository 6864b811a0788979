"""Evict stored values, and find the kinds of modules, by the values' heads alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.value.format import CheckStamp, open_artifact
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import CacheKey, Evicted, EvictScope, Kind

_BATCH = 128


async def sweep(
    link: GuardedRedis, names: KeyNames, scope: EvictScope, check: CheckStamp
) -> Evicted:
    """Delete all values in ``scope``, by SCAN and in batches. Raises TierUnavailable."""
    if scope.module_sha256:
        gone = Evicted()
        for pattern in (
            names.modules_pattern(scope.module_sha256),
            names.artifacts_pattern(scope.module_sha256),
            names.parts_pattern(scope.module_sha256),
        ):
            gone += await _sweep(link, names, scope, pattern, _take_all)
        return gone
    if scope.engine_id:

        async def made_by_engine(keys: Sequence[bytes]) -> list[bytes]:
            return await _made_by(link, names, keys, scope.engine_id, check)

        return await _sweep(link, names, scope, names.artifacts_pattern(), made_by_engine)
    return await _sweep(link, names, scope, names.all_pattern(), _take_all)


async def kinds_at(
    link: GuardedRedis, names: KeyNames, keys: Sequence[CacheKey], check: CheckStamp
) -> dict[CacheKey, Kind]:
    """Return the kind of module that each artifact was made of, for those that are stored.

    Raises TierUnavailable.
    """
    by_name = {names.artifact(key): key for key in keys}

    def kind(name: bytes, head: bytes) -> Kind | None:
        try:
            return open_artifact(head, by_name[name], check).what.kind
        except ValueRejected:
            return None

    found, _ = await look_at_heads(link, list(by_name), kind)
    return {by_name[name]: kind for name, kind in found.items() if kind}


async def _sweep(
    link: GuardedRedis,
    names: KeyNames,
    scope: EvictScope,
    pattern: bytes,
    choose: Callable[[Sequence[bytes]], Awaitable[Sequence[bytes]]],
) -> Evicted:
    gone = Evicted()
    async for found in link.scan(pattern):
        # Other clients may have keys under the prefix: delete only values.
        keys = [key for key in found if names.is_value(key)]
        for start in range(0, len(keys), _BATCH):
            chosen = await choose(keys[start : start + _BATCH])
            pinned = {name for name in chosen if scope.leaves(names.module_of(name))}
            if pinned:
                chosen = [name for name in chosen if name not in pinned]
                gone += Evicted(pinned=sum(names.value_at(name) is not None for name in pinned))
            for begin in range(0, len(chosen), _BATCH):
                gone += await _delete(link, names, chosen[begin : begin + _BATCH])
    return gone


async def _take_all(keys: Sequence[bytes]) -> Sequence[bytes]:
    return keys


async def _delete(link: GuardedRedis, names: KeyNames, keys: Sequence[bytes]) -> Evicted:
    # A key of another type under a value's name is deleted too; it has no length.
    lengths, _ = await read_strings(keys, link.lengths)
    existed = await link.delete(keys)
    gone = Evicted()
    for key, did in zip(keys, existed, strict=True):
        if did:
            size_bytes = lengths.get(key, 0)
            gone += Evicted(int(names.is_artifact(key)), int(names.is_module(key)), size_bytes)
    return gone


async def _made_by(
    link: GuardedRedis, names: KeyNames, keys: Sequence[bytes], engine_id: str, check: CheckStamp
) -> list[bytes]:
    """Return the artifacts of an engine, with all of their pieces.

    A value without a trusted key's stamp is not parsed, which could take seconds: the next
    daemon that reads it deletes it.
    """

    def of_engine(name: bytes, head: bytes) -> list[bytes]:
        key = names.artifact_key(name)
        try:
            opened = open_artifact(head, key, check) if key else None
        except ValueRejected:
            return []
        if key is None or opened is None or opened.what.spec.engine.id != engine_id:
            return []
        return [name, *(names.artifact_part(key, one.sha256) for one in opened.body.pieces[1:])]

    found, _ = await look_at_heads(link, keys, of_engine)
    return [name for chosen in found.values() for name in chosen]
