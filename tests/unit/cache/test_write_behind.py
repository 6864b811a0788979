"""Writes wait in a bounded queue; each is written, or dropped and logged."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.write_behind import WriteBehind
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact, EvictScope, Module

from tests.contract.values import artifact, module


class SlowTier(NullTier):
    """A tier that takes writes once its gate opens."""

    def __init__(self) -> None:
        super().__init__("redis")
        self.gate = asyncio.Event()
        self.written: list[str] = []
        self.broken = False
        self.on_failure: Callable[[], None] = lambda: None

    async def put(self, artifact: Artifact) -> None:
        await self.gate.wait()
        if self.broken:
            self.on_failure()
            raise TierUnavailable("no")
        self.written.append(artifact.spec.fingerprint)

    async def put_module(self, module: Module) -> None:
        await self.gate.wait()
        self.written.append(module.sha256)


@pytest.fixture
def slow() -> SlowTier:
    return SlowTier()


async def test_nothing_is_lost_while_there_is_room(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    for tag in range(5):
        writes.add(artifact(tag, 100))
    writes.add(module(1))
    assert writes.pending == 6
    assert slow.written == []
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [artifact(tag).spec.fingerprint for tag in range(5)] + [module(1).sha256]
    assert (writes.pending, writes.dropped) == (0, 0)


async def test_a_full_queue_drops_the_oldest(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    writes.add(artifact(0, 400))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # The first is under way, and waits no more.
    for tag in range(1, 5):
        writes.add(artifact(tag, 400))
    assert writes.dropped == 2
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [artifact(tag).spec.fingerprint for tag in (0, 3, 4)]


async def test_a_module_is_not_dropped_for_its_own_artifact(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    of = module(1, 600)
    for tag in (1, 2):
        writes.add(of)
        writes.add(artifact(tag, 5000, of=of))
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [of.sha256, artifact(2).spec.fingerprint]
    assert writes.dropped == 1


async def test_an_artifact_is_not_dropped_for_its_own_module(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    of = module(1, 600)
    writes.add(artifact(2, 400))
    writes.add(artifact(1, 600, of=of))
    writes.add(of)
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [artifact(1).spec.fingerprint, of.sha256]


async def test_artifacts_make_room_before_modules(slow: SlowTier) -> None:
    """A missing module costs callers an error, a missing artifact costs a compile."""
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    for tag in (1, 2):
        writes.add(module(tag, 300))
        writes.add(artifact(tag, 200))
    writes.add(module(3, 350))
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [
        module(tag, size).sha256 for tag, size in ((1, 300), (2, 300), (3, 350))
    ]


async def test_the_oldest_module_goes_when_no_artifact_is_left(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    for tag in range(1, 6):
        writes.add(module(tag, 300))
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [module(tag, 300).sha256 for tag in (3, 4, 5)]


async def test_each_dropped_write_is_logged(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 500, slow.always_ready)
    with capture_logs() as logs:
        writes.add(artifact(1, 400))
        writes.add(module(2, 300))
        slow.broken = True
        writes.add(artifact(3, 100))
        writes.add(module(4, 450))
        await writes.close(0)
    dropped = [line for line in logs if line["event"] == "a cache write was dropped"]
    first = dropped[0]
    assert (first["kind"], first["module"]) == ("artifact", artifact(1).module_sha256)
    assert (first["engine"], first["bytes"]) == (artifact(1).spec.engine.id, 400)
    assert first["fingerprint"] == artifact(1).spec.fingerprint
    assert [line["kind"] for line in dropped] == ["artifact", "artifact", "module", "module"]
    assert all("write_queue_bytes" in line["why"] for line in dropped[:3])
    assert "ends" in dropped[3]["why"]


async def test_a_bound_that_changes_counts_from_then_on(slow: SlowTier) -> None:
    limit_bytes = 1000
    writes = WriteBehind(slow, lambda: limit_bytes, slow.always_ready)
    for tag in range(1, 6):
        writes.add(artifact(tag, 200))
    limit_bytes = 400
    writes.add(artifact(6, 200))
    assert writes.pending == 2
    await writes.close(0)


async def test_a_write_that_meets_an_outage_is_tried_again(slow: SlowTier) -> None:
    up = asyncio.Event()
    up.set()
    slow.gate.set()
    slow.broken = True
    writes = WriteBehind(
        slow, lambda: 10_000, _until(up), is_down=lambda: slow.broken and not up.is_set()
    )
    slow.on_failure = up.clear
    writes.add(artifact(1))
    writes.add(module(1))
    await asyncio.sleep(0.01)
    assert (slow.written, writes.pending, writes.dropped) == ([], 2, 0)
    slow.broken = False
    up.set()
    await writes.close(5)
    assert slow.written == [artifact(1).spec.fingerprint, module(1).sha256]


async def test_a_write_that_brings_the_tier_down_each_time_is_given_up(slow: SlowTier) -> None:
    slow.gate.set()
    slow.broken = True
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready, is_down=lambda: True)
    writes.add(artifact(1))
    writes.add(module(1))
    await writes.close(5)
    assert writes.dropped == 1
    assert slow.written == [module(1).sha256]


def _until(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        await event.wait()

    return wait


async def test_something_larger_than_the_queue_goes_alone(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 1000, slow.always_ready)
    writes.add(artifact(1, 5000))
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [artifact(1).spec.fingerprint]


async def test_the_newest_of_a_key_is_written(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    for _ in range(3):
        writes.add(artifact(1, 100))
    assert writes.pending == 1
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [artifact(1).spec.fingerprint]


async def test_failures_are_counted_and_stop_nothing(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    slow.broken = True
    slow.gate.set()
    writes.add(artifact(1))
    writes.add(module(1))
    await writes.close(5)
    assert writes.dropped == 1
    assert slow.written == [module(1).sha256]


async def test_queued_writes_outlast_an_outage(slow: SlowTier) -> None:
    up = asyncio.Event()

    async def ready() -> None:
        await up.wait()

    slow.gate.set()
    writes = WriteBehind(slow, lambda: 10_000, ready)
    writes.add(artifact(1))
    await asyncio.sleep(0)
    assert (slow.written, writes.dropped) == ([], 0)
    up.set()
    await writes.close(5)
    assert slow.written == [artifact(1).spec.fingerprint]


async def test_closing_gives_up_in_time(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    writes.add(artifact(1))
    writes.add(artifact(2))
    await asyncio.sleep(0)
    await writes.close(0.01)
    assert writes.dropped == 2


async def test_an_outage_at_the_end_is_not_waited_for(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, asyncio.Event().wait)  # type: ignore[arg-type]
    writes.add(artifact(1))
    await asyncio.wait_for(writes.close(3600), 20)
    assert writes.dropped == 1


async def test_a_slow_tier_is_waited_for(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    writes.add(artifact(1))
    asyncio.get_running_loop().call_later(1.2, slow.gate.set)
    await asyncio.wait_for(writes.close(3600), 20)
    assert (slow.written, writes.dropped) == ([artifact(1).spec.fingerprint], 0)


async def test_forgetting_is_limited_to_its_scope(slow: SlowTier) -> None:
    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready)
    for tag in (1, 2):
        writes.add(module(tag))
        writes.add(artifact(tag))
    await writes.forget(EvictScope(module_sha256=module(1).sha256))
    await writes.forget(EvictScope(engine_id="wasmer-9.9"))
    slow.gate.set()
    await writes.close(5)
    assert slow.written == [module(2).sha256, artifact(2).spec.fingerprint]
    assert writes.dropped == 0


async def test_a_write_runs_inside_of_what_was_carried_when_it_was_added(slow: SlowTier) -> None:
    inside: list[str] = []

    @contextmanager
    def carry() -> Iterator[None]:
        inside.append("entered")
        yield
        inside.append("left")

    writes = WriteBehind(slow, lambda: 10_000, slow.always_ready, carry=carry)
    writes.add(artifact(1, 100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == ["entered"]
    slow.gate.set()
    await writes.close(5)
    assert inside == ["entered", "left"]


async def test_what_dropped_writes_carried_is_let_go_during_an_outage(slow: SlowTier) -> None:
    class Context(AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            pass

    kept = weakref.WeakSet[Context]()

    def carry() -> Context:
        kept.add(context := Context())
        return context

    writes = WriteBehind(slow, lambda: 1000, slow.always_ready, carry=carry)
    for tag in range(50):
        writes.add(artifact(tag, 100))
    assert writes.dropped >= 40
    assert len(kept) <= writes.pending
    await writes.forget(EvictScope())
    assert not kept
    await writes.close(0)
