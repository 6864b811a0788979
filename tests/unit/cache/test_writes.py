"""Writes wait in a bounded queue; each is written, or dropped and logged."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache.cache import Writes
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


async def test_nothing_is_lost_while_there_is_room(slow: Tier) -> None:
    writes = writes_to(slow)
    items: list[Item] = [*(artifact(tag, 100) for tag in range(5)), module(1)]
    for item in items:
        writes.add(item)
    assert len(writes.items()) == 6
    assert slow.written == []
    slow.gate.set()
    await finish(writes)
    assert slow.written == [item.key for item in items]
    assert (len(writes.items()), writes.dropped) == (0, 0)


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


async def test_what_waits_is_served_until_it_is_written(slow: Tier) -> None:
    writes = writes_to(slow)
    one, two, wasm = artifact(1), artifact(2), module(1)
    for item in (one, two, wasm):
        writes.add(item)
    await under_way(writes)
    assert writes.waiting(one.key) is one  # It is being written.
    assert writes.waiting(two.key) is two
    assert writes.waiting(wasm.sha256) is wasm
    assert writes.items() == [one, two, wasm]
    slow.gate.set()
    await finish(writes)
    assert writes.waiting(one.key) is None
    assert writes.waiting(wasm.sha256) is None
    assert writes.items() == []


async def under_way(writes: Writes) -> None:
    """Return when the first write has begun."""
    flushing = asyncio.create_task(writes.flush(0.01))
    await flushing


async def test_a_full_queue_drops_the_oldest(slow: Tier) -> None:
    writes = writes_to(slow, 1000)
    writes.add(artifact(0, 400))
    await under_way(writes)  # It waits no more.
    for tag in range(1, 5):
        writes.add(artifact(tag, 400))
    assert writes.dropped == 2
    slow.gate.set()
    await finish(writes)
    assert slow.written == [artifact(tag).key for tag in (0, 3, 4)]


async def test_a_module_is_not_dropped_for_its_own_artifact(slow: Tier) -> None:
    writes = writes_to(slow, 1000)
    of = module(1, 600)
    for tag in (1, 2):
        writes.add(of)
        writes.add(artifact(tag, 5000, of=of))
    slow.gate.set()
    await finish(writes)
    assert slow.written == [of.sha256, artifact(2, of=of).key]
    assert writes.dropped == 1


async def test_an_artifact_is_not_dropped_for_its_own_module(slow: Tier) -> None:
    writes = writes_to(slow, 1000)
    of = module(1, 600)
    writes.add(artifact(2, 400))
    writes.add(artifact(1, 600, of=of))
    writes.add(of)
    slow.gate.set()
    await finish(writes)
    assert slow.written == [artifact(1, of=of).key, of.sha256]


async def test_artifacts_make_room_before_modules(slow: Tier) -> None:
    """A missing module costs callers an error, a missing artifact costs a compile."""
    writes = writes_to(slow, 1000)
    for tag in (1, 2):
        writes.add(module(tag, 300))
        writes.add(artifact(tag, 200))
    writes.add(module(3, 350))
    slow.gate.set()
    await finish(writes)
    assert slow.written == [
        module(tag, size).sha256 for tag, size in ((1, 300), (2, 300), (3, 350))
    ]


async def test_the_oldest_module_goes_when_no_artifact_is_left(slow: Tier) -> None:
    writes = writes_to(slow, 1000)
    for tag in range(1, 6):
        writes.add(module(tag, 300))
    slow.gate.set()
    await finish(writes)
    assert slow.written == [module(tag, 300).sha256 for tag in (3, 4, 5)]


async def test_small_items_are_bounded_too(slow: Tier) -> None:
    writes = writes_to(slow, 10**9)
    for tag in range(10_100):
        writes.add(module(tag))
    assert (len(writes.items()), writes.dropped) == (10_000, 100)
    await writes.close()


async def test_each_dropped_write_is_logged(slow: Tier) -> None:
    writes = writes_to(slow, 500)
    with capture_logs() as logs:
        writes.add(artifact(1, 400))
        writes.add(module(2, 300))
        writes.add(artifact(3, 100))
        writes.add(module(4, 450))
        await writes.close()
    dropped = [line for line in logs if line["event"] == "a cache write was dropped"]
    first = dropped[0]
    assert (first["kind"], first["module"]) == ("artifact", artifact(1).module_sha256)
    assert (first["engine"], first["bytes"]) == (artifact(1).spec.engine.id, 400)
    assert first["fingerprint"] == artifact(1).spec.fingerprint
    assert [line["kind"] for line in dropped] == ["artifact", "artifact", "module", "module"]
    assert all("newer writes" in line["why"] for line in dropped[:3])
    assert "ends" in dropped[3]["why"]
    assert {line["tier"] for line in dropped} == {"redis"}


async def test_a_bound_that_changes_counts_from_then_on(slow: Tier) -> None:
    limit_bytes = 1000
    writes = Writes(cast("Any", slow), lambda: limit_bytes)
    for tag in range(1, 6):
        writes.add(artifact(tag, 200))
    limit_bytes = 400
    writes.add(artifact(6, 200))
    assert len(writes.items()) == 2
    await writes.close()


async def test_a_write_that_meets_an_outage_is_tried_again(slow: Tier) -> None:
    slow.gate.set()
    slow.broken = slow.link.is_down = True
    slow.on_failure = slow.link.open.clear
    writes = writes_to(slow)
    writes.add(artifact(1))
    writes.add(module(1))
    await under_way(writes)
    assert (slow.written, len(writes.items()), writes.dropped) == ([], 2, 0)
    slow.broken = False
    slow.link.open.set()
    await finish(writes)
    assert slow.written == [artifact(1).key, module(1).sha256]


async def test_a_write_that_brings_the_tier_down_each_time_is_given_up(slow: Tier) -> None:
    slow.gate.set()
    slow.broken = True
    tries = 0

    def count() -> None:
        nonlocal tries
        tries += 1

    slow.on_failure = count
    slow.link.is_down = True
    writes = writes_to(slow)
    writes.add(artifact(1))
    writes.add(module(1))
    await finish(writes)
    assert (writes.dropped, tries) == (1, 2)
    assert slow.written == [module(1).sha256]


async def test_a_write_that_was_replaced_meanwhile_is_not_tried_again(slow: Tier) -> None:
    slow.broken = slow.link.is_down = True
    writes = writes_to(slow, 1000)
    old, new = artifact(1, 600), artifact(1, 600)
    slow.on_failure = lambda: setattr(slow, "broken", False)
    writes.add(old)
    await under_way(writes)
    writes.add(new)
    assert writes.waiting(new.key) is new
    slow.gate.set()
    await writes.flush(5)
    assert (slow.written, writes.dropped) == ([new.key], 1)
    for tag in (2, 3):  # Nor does it take room for ever.
        writes.add(artifact(tag, 500))
    assert len(writes.items()) == 2
    await finish(writes)


async def test_something_larger_than_the_queue_goes_alone(slow: Tier) -> None:
    writes = writes_to(slow, 1000)
    writes.add(artifact(1, 5000))
    slow.gate.set()
    await finish(writes)
    assert slow.written == [artifact(1).key]


async def test_the_newest_of_a_key_is_written(slow: Tier) -> None:
    writes = writes_to(slow)
    all_of_them = [artifact(1, size) for size in (100, 200, 300)]
    for one in all_of_them:
        writes.add(one)
    assert len(writes.items()) == 1
    assert writes.waiting(all_of_them[0].key) is all_of_them[2]
    slow.gate.set()
    await finish(writes)
    assert slow.written == [artifact(1).key]


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


async def test_queued_writes_outlast_an_outage(slow: Tier) -> None:
    slow.gate.set()
    slow.link.open.clear()
    writes = writes_to(slow)
    writes.add(artifact(1))
    await under_way(writes)
    assert (slow.written, writes.dropped) == ([], 0)
    slow.link.open.set()
    await finish(writes)
    assert slow.written == [artifact(1).key]


async def test_flushing_gives_up_in_time_and_closing_drops(slow: Tier) -> None:
    writes = writes_to(slow)
    writes.add(artifact(1))
    writes.add(artifact(2))
    await writes.flush(0.01)
    assert writes.dropped == 0
    with capture_logs() as logs:
        await writes.close()
    assert (writes.dropped, len(writes.items())) == (2, 0)
    assert logs[0]["event"] == "cache writes given up"


async def test_an_outage_at_the_end_is_not_waited_for(slow: Tier) -> None:
    slow.link.open.clear()
    writes = writes_to(slow)
    writes.add(artifact(1))
    await asyncio.wait_for(finish(writes, 3600), 20)
    assert writes.dropped == 1


async def test_a_slow_tier_is_waited_for(slow: Tier) -> None:
    writes = writes_to(slow)
    writes.add(artifact(1))
    asyncio.get_running_loop().call_later(1.2, slow.gate.set)
    await asyncio.wait_for(finish(writes, 3600), 20)
    assert (slow.written, writes.dropped) == ([artifact(1).key], 0)


async def test_forgetting_is_limited_to_its_scope(slow: Tier) -> None:
    writes = writes_to(slow)
    for tag in (1, 2):
        writes.add(module(tag))
        writes.add(artifact(tag))
    writes.add(artifact(3, engine="wasmer"))
    pinned = EvictScope(spares=lambda _: True)
    for scope in (
        EvictScope(module_sha256=module(1).sha256),
        EvictScope(engine_id="wasmer-1.0"),
        EvictScope(engine_id="wasmer-9.9"),
        pinned,
    ):
        await writes.forget(scope)
    slow.gate.set()
    await finish(writes)
    assert slow.written == [module(2).sha256, artifact(2).key]
    assert writes.dropped == 0


async def test_forgetting_waits_for_a_write_that_is_under_way(slow: Tier) -> None:
    writes = writes_to(slow)
    writes.add(artifact(1))
    await under_way(writes)
    forgetting = asyncio.create_task(writes.forget(EvictScope()))
    other = asyncio.create_task(writes.forget(EvictScope(module_sha256="0" * 64)))
    await asyncio.wait_for(other, 5)
    assert not forgetting.done()
    slow.gate.set()
    await asyncio.wait_for(forgetting, 5)
    assert slow.written == [artifact(1).key]
    await writes.close()


async def test_nobody_waits_for_a_write_that_the_end_of_the_daemon_stopped(slow: Tier) -> None:
    writes = writes_to(slow)
    writes.add(artifact(1))
    await under_way(writes)
    forgetting = asyncio.create_task(writes.forget(EvictScope()))
    await asyncio.sleep(0)
    await writes.close()
    await asyncio.wait_for(forgetting, 5)
    assert slow.written == []


async def test_what_is_forgotten_is_not_tried_again_after_an_outage(slow: Tier) -> None:
    slow.broken = slow.link.is_down = True
    slow.on_failure = lambda: setattr(slow, "broken", False)
    writes = writes_to(slow)
    writes.add(artifact(1))
    await under_way(writes)
    forgetting = asyncio.create_task(writes.forget(EvictScope()))
    await asyncio.sleep(0)
    assert not forgetting.done()
    slow.gate.set()
    await asyncio.wait_for(forgetting, 5)
    await finish(writes)
    assert slow.written == []


async def test_what_is_given_up_is_neither_served_nor_written(slow: Tier) -> None:
    writes = writes_to(slow)
    slow.broken = slow.link.is_down = True
    first, second, third = (artifact(tag) for tag in range(3))
    for one in (first, second, third):
        writes.add(one)
    await under_way(writes)
    writes.give_up([first, second])
    assert writes.waiting(first.key) is writes.waiting(second.key) is None
    assert writes.items() == [third]
    slow.on_failure = lambda: setattr(slow, "broken", False)
    slow.gate.set()
    await finish(writes)
    assert slow.written == [third.key]  # The first failed, and was not tried again.


class Call:
    """A call that is traced, as far as writes know it."""

    ended_ns = 0


async def test_a_write_is_a_step_of_the_call_that_added_it(slow: Tier) -> None:
    calls = [Call(), Call()]
    writes = writes_to(slow)
    for tag, call in enumerate(calls):
        tracing.CALL.set(cast("Any", call))
        writes.add(artifact(tag, 100))
        call.ended_ns = 1
    tracing.CALL.set(None)
    slow.gate.set()
    await finish(writes)
    assert all(isinstance(call, Call) for call in slow.calls)
    assert len(slow.calls) == 2
    assert len({id(call) for call in (*slow.calls, *calls)}) == 4  # Copies, which have not ended.
    assert [call.ended_ns for call in slow.calls] == [0, 0]


async def test_what_dropped_writes_carried_is_let_go_during_an_outage(slow: Tier) -> None:
    kept = weakref.WeakSet[Call]()

    class Kept(Call):
        def __copy__(self) -> Call:
            kept.add(copy := Call())
            return copy

    tracing.CALL.set(cast("Any", Kept()))
    writes = writes_to(slow, 1000)
    for tag in range(50):
        writes.add(artifact(tag, 100))
    tracing.CALL.set(None)
    assert writes.dropped >= 40
    assert len(kept) <= len(writes.items())
    await writes.forget(EvictScope())
    assert not kept
    await writes.close()
