"""Writes wait in a bounded queue; each is written, or dropped and logged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache.writes import Writes
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, EvictScope, Item
from wasmkilnd.telemetry import tracing

from tests.contract.values import artifact, module
from tests.doubles.tiers import SharedTier


class Tier(SharedTier):
    """A tier that takes writes once its gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()
        self.written: list[CacheKey | str] = []
        self.calls: list[Any] = []
        self.broken = False
        self.on_failure: Callable[[], None] = lambda: None

    async def put(self, item: Item) -> None:
        await self.gate.wait()
        self.calls.append(tracing.CALL.get())
        if self.broken and isinstance(item, Artifact):
            self.on_failure()
            raise TierUnavailable("no")
        self.written.append(item.key)


@pytest.fixture
def slow() -> Tier:
    return Tier()


def writes_to(tier: Tier, limit_bytes: int = 10_000) -> Writes:
    return Writes(cast("Any", tier), lambda: limit_bytes)


async def finish(writes: Writes, timeout_s: float = 5) -> None:
    await writes.flush(timeout_s)
    await writes.close()


async def under_way(writes: Writes) -> None:
    """Return when the first write has begun."""
    await writes.flush(0.01)


async def test_a_write_lets_the_reply_go_first(slow: Tier) -> None:
    slow.gate.set()
    writes = writes_to(slow)
    writes.add(artifact(1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert slow.written == []
    await asyncio.wait_for(writes.settled(artifact(1).key, at_once=True), 5)
    assert slow.written == [artifact(1).key]
    writes.add(artifact(2))
    await asyncio.wait_for(writes.settled(artifact(2).key), 5)
    assert slow.written == [artifact(1).key, artifact(2).key]
    await writes.close()


BIG = module(1, 600)


@pytest.mark.parametrize(
    ("added", "kept"),
    [
        ([artifact(tag, 400) for tag in range(4)], [2, 3]),
        # A module and its artifact are both written, whatever their sizes.
        ([BIG, artifact(1, 5000, of=BIG), BIG, artifact(2, 5000, of=BIG)], [2, 3]),
        ([artifact(2, 400), artifact(1, 600, of=BIG), BIG], [1, 2]),
        # A missing module costs callers an error, a missing artifact costs a compile.
        (
            [module(1, 300), artifact(1, 200), module(2, 300), artifact(2, 200), module(3, 350)],
            [0, 2, 4],
        ),
        ([module(tag, 300) for tag in range(5)], [2, 3, 4]),
        ([artifact(1, 5000)], [0]),
    ],
    ids=[
        *("the oldest goes", "no module for its artifact", "no artifact for its module"),
        *("artifacts go first", "then the oldest module", "what is too large goes alone"),
    ],
)
async def test_what_a_full_queue_drops(slow: Tier, added: list[Item], kept: list[int]) -> None:
    writes = writes_to(slow, 1000)
    for item in added:
        writes.add(item)
    slow.gate.set()
    await finish(writes)
    assert slow.written == [added[place].key for place in kept]


async def test_bounds_of_the_queue(slow: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkilnd.cache.writes._MAX_ITEMS", 100)
    writes = writes_to(slow, 10**9)
    for tag in range(110):
        writes.add(module(tag))
    assert (len(writes.items()), writes.dropped) == (100, 10)
    await writes.close()
    limit_bytes = 1000  # It may change at any time.
    writes = Writes(cast("Any", slow), lambda: limit_bytes)
    writes.add(artifact(0, 400))
    await under_way(writes)  # It waits no more, and takes no room.
    for tag in range(1, 6):
        writes.add(artifact(tag, 200))
    assert len(writes.items()) == 6
    limit_bytes = 400
    writes.add(artifact(6, 200))
    assert len(writes.items()) == 3
    await writes.close()


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_write_that_meets_an_outage_is_tried_once_more(
    slow: Tier, comes_back: bool
) -> None:
    tries = 0

    def count() -> None:
        nonlocal tries
        tries += 1
        slow.broken = not comes_back

    slow.gate.set()
    slow.broken = slow.link.is_down = True
    slow.on_failure = count
    writes = writes_to(slow)
    writes.add(artifact(1))
    writes.add(module(1))
    await finish(writes)
    stored = [module(1).sha256, *([artifact(1).key] if comes_back else [])]
    assert sorted(slow.written, key=str) == sorted(stored, key=str)
    assert (writes.dropped, tries) == (0, 1) if comes_back else (1, 2)


async def test_what_was_replaced_given_up_or_forgotten_meanwhile_is_not_tried_again(
    slow: Tier,
) -> None:
    slow.on_failure = lambda: setattr(slow, "broken", False)
    for way in ("replaced", "given up", "forgotten"):
        slow.broken = slow.link.is_down = True
        slow.gate.clear()
        slow.written.clear()
        writes = writes_to(slow, 1000)
        old, new, other = artifact(1, 300), artifact(1, 300), artifact(2, 300)
        writes.add(old)
        writes.add(other)
        await under_way(writes)
        match way:
            case "replaced":
                writes.add(new)
                slow.gate.set()
            case "given up":
                writes.give_up([old])
                assert writes.waiting(old.key) is None
                slow.gate.set()
            case "forgotten":
                forgetting = asyncio.create_task(writes.forget(EvictScope(old.module_sha256)))
                elsewhere = writes.forget(EvictScope(module_sha256="0" * 64))
                await asyncio.wait_for(elsewhere, 5)
                assert not forgetting.done()  # It waits for the write that is under way.
                slow.gate.set()
                await asyncio.wait_for(forgetting, 5)
        await finish(writes)
        written = [other.key, new.key] if way == "replaced" else [other.key]
        assert slow.written == written


async def test_failures_and_defects_are_counted_and_stop_nothing() -> None:
    class Broken(Tier):
        async def put(self, item: Item) -> None:
            if item.key == artifact(2).key:
                raise ZeroDivisionError
            await super().put(item)

    slow = Broken()
    slow.broken = True
    slow.gate.set()
    writes = writes_to(slow)
    with capture_logs() as logs:
        for item in (artifact(1), artifact(2), module(1)):
            writes.add(item)
        await finish(writes)
    assert writes.dropped == 2
    assert slow.written == [module(1).sha256]
    why = [line["why"] for line in logs if line["event"] == "a cache write was dropped"]
    assert why == ["no", "the daemon failed to write it"]


async def test_forgetting_is_limited_to_its_scope(slow: Tier) -> None:
    writes = writes_to(slow)
    for tag in (1, 2):
        writes.add(module(tag))
        writes.add(artifact(tag))
    writes.add(artifact(3, engine="wasmer"))
    for scope in (
        EvictScope(module_sha256=module(1).sha256),
        EvictScope(engine_id="wasmer-1.0"),
        EvictScope(engine_id="wasmer-9.9"),
        EvictScope(spares=lambda _: True),
    ):
        await writes.forget(scope)
    slow.gate.set()
    await finish(writes)
    assert slow.written == [module(2).sha256, artifact(2).key]
    assert writes.dropped == 0


async def test_nobody_waits_for_a_write_that_the_end_of_the_daemon_stopped(slow: Tier) -> None:
    writes = writes_to(slow)
    writes.add(artifact(1))
    await under_way(writes)
    forgetting = asyncio.create_task(writes.forget(EvictScope()))
    await asyncio.sleep(0)
    await writes.close()
    await asyncio.wait_for(forgetting, 5)
    assert slow.written == []
