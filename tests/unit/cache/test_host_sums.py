"""Whatever is done to a small store, its sums are right and its limit holds."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import EvictScope

from tests.contract.host_store import host_store
from tests.doubles.notes import Notes
from tests.faults_host.stores import SEALER, artifact, check_limit

STEP = st.tuples(
    st.sampled_from(["put", "put", "put", "look", "evict", "engine", "all", "resize"]),
    st.integers(0, 5),
    st.integers(1, 9000),
)
LIMIT_BYTES = 90_000


async def do(tier: HostStore, what: str, tag: int, size_bytes: int) -> None:
    one = artifact(tag, 1000 * tag, "wasmer" if tag % 2 else "wasmtime")
    match what:
        case "put":
            # Of a killed compile there may be two artifacts under one key.
            await tier.put(artifact(tag, size_bytes, one.spec.engine.name))
        case "look":
            named = await tier.file_of(one.key)
            assert named is None or named[0].key == one.key
        case "evict":
            await tier.evict(EvictScope(module_sha256=one.module_sha256))
        case "engine":
            await tier.evict(EvictScope(engine_id=one.spec.engine.id))
        case "all":
            await tier.evict(EvictScope())
        case "resize":
            tier.limit_bytes = min(LIMIT_BYTES, 10 * size_bytes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(STEP, max_size=5), max_size=6))
def test_the_sums_are_right_after_steps_at_once(rounds: list[list[tuple[str, int, int]]]) -> None:
    async def run(directory: Path) -> None:
        notes = Notes()
        for together in rounds:
            tier = host_store(directory, SEALER, notes, limit_bytes=LIMIT_BYTES)
            await tier.start()
            done = await asyncio.gather(
                *(do(tier, *step) for step in together), return_exceptions=True
            )
            # Too many writes at once for so small a store.
            assert all(each is None or isinstance(each, TierUnavailable) for each in done)
            await tier.close()
            await check_limit(directory, LIMIT_BYTES)
        assert notes.rejected == []

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "store"))
