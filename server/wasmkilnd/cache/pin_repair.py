"""Put back what a tier has lost of pinned modules, from another tier of this daemon."""

from __future__ import annotations

from collections.abc import Collection

from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.open_shared import SharedTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey

# In one look. The rest follows at the next one.
_MAX_BYTES = 64 * 1024 * 1024


async def repair(
    modules: Collection[str], memory: MemoryTier, host: HostStore, shared: SharedTier
) -> set[str]:
    """Write what is missing to the host store and the shared tier, behind the calls.

    Return the modules of which the shared tier has values that expire, though they are pinned.
    Raises TierUnavailable.
    """
    at_hand = {each.key: each for module in modules for each in memory.artifacts_of(module)}
    on_disk = set[CacheKey]()
    if host.is_on:
        on_disk = {key for each in host.entries_of(modules).values() for key in each}
        for key, artifact in at_hand.items():
            lacks = key not in on_disk and not host.write_behind.waiting(key)
            if lacks and host.has_room_for_pinned(artifact) and host.takes(artifact):
                host.write_behind.add(artifact)
    if shared.pins is None or not modules:
        return set()
    keys = [key for key in {*at_hand, *on_disk} if not shared.write_behind.waiting(key)]
    # Modules first: what has to be left out can be compiled from them.
    lacking = await shared.pins.look([*modules, *keys])
    left_bytes = _MAX_BYTES
    for each in lacking.missing:
        if left_bytes <= 0:
            break
        if isinstance(each, str):
            if module := memory.module_of(each):
                left_bytes -= len(module.wasm)
                shared.write_behind.add(module)
        elif found := at_hand.get(each) or await _from_disk(each, host):
            left_bytes -= found.size_bytes
            shared.write_behind.add(found)
    return lacking.expiring


async def _from_disk(key: CacheKey, host: HostStore) -> Artifact | None:
    try:
        return await host.get(key)
    except TierUnavailable:
        return None
