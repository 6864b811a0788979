"""The object store's tier, over a directory: what no daemon shows from outside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache import object_store, shared_tier
from wasmkilnd.cache.cache import Cache
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.object_store import Bucket, Files, ObjectStore, Remote, prefix_of
from wasmkilnd.cache.value import ValueRejected
from wasmkilnd.cache.writes import Writes
from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, nothing_pinned
from wasmkilnd.waits.budgets import Allowance

from tests.contract.sealing import OURS, sealer
from tests.contract.values import artifact, module
from tests.doubles.notes import Notes
from tests.doubles.tiers import SharedTier
from tests.doubles.until import until

LIMIT_BYTES = 1_000_000
TIMEOUT_S = 60.0


class Slow(Files):
    """Files that wait where a test closes a gate."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.gates: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self.begun = threading.Semaphore(0)
        self.failure: OSError | None = None
        self.refused = self.refused_name = ""

    def get(self, *asked: Any) -> Any:
        self.hold("get", *asked)
        found = super().get(*asked)
        if found and "read" in self.gates:
            end = found.end

            def held(size_bytes: int) -> Any:
                self.hold("read")
                return end(size_bytes)

            found.end = held  # type: ignore[method-assign]
        return found

    def put(self, *asked: Any) -> bool:
        self.hold("put")
        return super().put(*asked)

    def pages(self, prefix: str) -> Iterator[list[tuple[str, int]]]:
        for page in super().pages(prefix):
            self.hold("pages")
            yield page

    def delete(self, *asked: Any) -> None:
        self.hold("delete")
        super().delete(*asked)

    def hold(self, what: str, name: str = "") -> None:
        """Note that the store is asked, and wait where a test has closed the gate."""
        self.asked.append(what)
        self.begun.release()
        if gate := self.gates.get(what):
            gate.wait(60)
        if self.failure and self.refused == what and name.startswith(self.refused_name):
            raise self.failure


class Site:
    """A store, and what a test needs around it."""

    def __init__(self, root: Path) -> None:
        url = f"file://{root}"
        self.bucket = Bucket(url, timeout_s=TIMEOUT_S, largest_bytes=LIMIT_BYTES)
        self.files = self.bucket.store = Slow(str(root))
        self.notes = Notes()
        self.store = self.again()

    def again(self, prefix: str = "wasm/", **other: Any) -> ObjectStore:
        """Return another store over the same bucket."""
        limits: dict[str, Any] = dict.fromkeys(("artifact_bytes", "module_bytes"), limit)
        given = {**limits, "is_pinned": nothing_pinned, **other}
        return ObjectStore(self.bucket, prefix, sealer(OURS), self.notes, **given)

    def cache(self, redis: SharedTier | None = None) -> Cache:
        """Return all tiers: memory, this one, and perhaps a Redis."""
        return Cache(
            *(MemoryTier(LIMIT_BYTES), None, cast("Any", redis), self.notes),
            call_wait_s=60.0,
            write_queue_bytes=limit,
            objects=self.store,
        )

    def close_gate(self, what: str) -> threading.Event:
        """Have the store wait before it does ``what``, until the gate that is returned is set."""
        return self.files.gates.setdefault(what, threading.Event())

    def refuse(self, number: int, what: str = "", name: str = "") -> None:
        """Have the store refuse to do ``what`` to objects of this name, or to all; 0 ends it."""
        self.files.failure = OSError(number, "no") if number else None
        self.files.refused, self.files.refused_name = what, name

    async def get(self, key: CacheKey | str) -> Any:
        return await self.store.get(key, Allowance())


def limit() -> int:
    return LIMIT_BYTES


def sealed(tag: int, size_bytes: int = 100) -> Artifact:
    return sealer(OURS).seal(artifact(tag, size_bytes))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    for gate in made.files.gates.values():
        gate.set()
    await made.bucket.close()


async def test_values_come_back_and_what_is_seen_is_held(site: Site) -> None:
    one, wasm = sealed(1), module(1)
    await site.store.put(one)
    await site.store.put(wasm)
    reader = site.again()
    assert not await reader.held([one.key])
    found = await reader.get(one.key, Allowance())
    assert (found.key, found.sha256) == (one.key, one.sha256)
    assert await reader.get(wasm.sha256, Allowance()) == wasm
    # Also where only the fingerprint is known.
    alone = replace(one.key, engine_id="")
    assert await reader.held([alone]) == {one.key}
    assert await site.again().get(alone, Allowance()) is None
    # What was seen is not written again.
    before = site.files.asked.count("put")
    await reader.put(one)
    assert site.files.asked.count("put") == before


async def test_what_was_seen_long_ago_may_be_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.store.put(one := sealed(1))
    assert await site.store.held([one.key]) == {one.key}
    monkeypatch.setattr(object_store, "_SEEN_S", 0.0)
    assert await site.store.held([one.key]) == frozenset()


async def test_a_directory_in_the_place_of_an_object_makes_room(site: Site, tmp_path: Path) -> None:
    one = sealed(1)
    place = tmp_path / site.store.name_of(one.key)
    (place / "somebody's").mkdir(parents=True)
    assert await site.get(one.key) is None
    await site.store.put(one)
    assert (await site.again().get(one.key, Allowance())).sha256 == one.sha256
    assert list(place.parent.glob(".*/somebody's"))  # Nothing of it is deleted.


async def test_a_store_that_hangs_costs_callers_one_time_out(site: Site) -> None:
    await site.store.put(one := sealed(1))
    gate = site.close_gate("get")
    site.bucket.timeout_s = 0.2
    with capture_logs() as lines, pytest.raises(TierUnavailable, match="does not answer within"):
        await site.get(one.key)
    assert [line["event"] for line in lines] == ["tier is down"]
    asked = len(site.files.asked)
    for _ in range(3):
        with pytest.raises(TierUnavailable):
            await site.get(one.key)
    assert len(site.files.asked) == asked
    gate.set()
    async with asyncio.timeout(60):
        await site.bucket.ready()
    site.bucket.timeout_s = TIMEOUT_S
    assert (await site.get(one.key)).sha256 == one.sha256


async def test_a_large_value_has_more_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.store.put(one := sealed(1))
    monkeypatch.setattr(shared_tier, "READ_BYTES_PER_S", 10)
    site.bucket.timeout_s, gate, allowance = 0.2, site.close_gate("read"), Allowance()
    reading = asyncio.create_task(site.store.get(one.key, allowance))
    await until(lambda: "read" in site.files.asked)
    await asyncio.sleep(2 * site.bucket.timeout_s)
    assert allowance.seconds > 10
    gate.set()
    assert (await reading).sha256 == one.sha256


def test_no_more_is_read_than_the_store_said() -> None:
    found = object_store.Stored(10, (), iter([bytes(5)] * 4))
    with pytest.raises(ValueRejected, match="longer than its store said"):
        found.end(5)
    assert len(list(found._coming)) == 1


async def test_no_namespace_takes_all_room_for_what_is_not_verified(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large value of each is read at a time, and small ones beside it."""
    large, small = [sealed(tag, 3_000_000) for tag in (1, 2)], sealed(3)
    monkeypatch.setattr(shared_tier, "READ_BYTES_PER_S", 10**12)
    limits: dict[str, Any] = dict.fromkeys(("artifact_bytes", "module_bytes"), lambda: 10**7)
    one, two = (site.again(f"{name}/", **limits) for name in ("one", "two"))
    for each in large:
        await one.put(each)
    await two.put(small)
    sizes = [await two.size(small.key), *[await one.size(each.key) for each in large]]
    assert sizes == sorted(size_bytes for size_bytes in sizes if size_bytes)
    monkeypatch.setattr(object_store, "_ONE_REQUEST_BYTES", sizes[0])
    gate = site.close_gate("read")
    first = asyncio.create_task(one.get(large[0].key, Allowance()))
    await until(lambda: site.files.asked.count("read") == 1)
    other = asyncio.create_task(two.get(small.key, Allowance()))
    await until(lambda: site.files.asked.count("read") == 2)
    # What waits is not read, and fails no caller where it waits for too long.
    site.bucket.timeout_s, before = 1.0, site.bucket.timeout_s
    with pytest.raises(TierUnavailable, match="all threads"):
        await one.get(large[1].key, Allowance())
    assert site.bucket.up
    assert site.files.asked.count("read") == 2
    site.bucket.timeout_s = before
    second = asyncio.create_task(one.get(large[1].key, Allowance()))
    await until(lambda: site.files.asked.count("get") == 4)
    gate.set()
    found = await asyncio.gather(first, second, other)
    assert [each and each.sha256 for each in found] == [each.sha256 for each in (*large, small)]


@pytest.mark.parametrize(
    "told", ["status code: 413 Payload Too Large", "status code: 400: <Code>EntityTooLarge</Code>"]
)
async def test_an_object_above_the_limit_of_the_store_is_told_and_no_refusal(
    site: Site, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote("s3://bucket/prefix", 1.0, 1)

    def refuse(*_: object, **__: object) -> None:
        raise remote._kinds.GenericError(told)

    monkeypatch.setattr(remote, "_obstore", SimpleNamespace(put=refuse))
    monkeypatch.setattr(site.bucket, "store", remote)
    with capture_logs() as lines, pytest.raises(DoesNotFit):
        await site.store.put(sealed(1))
    assert [line["event"] for line in lines] == [
        "value not shared: the tier does not take one of its size"
    ]
    assert site.notes.stores == ["too_large"]
    assert site.store.refusal == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
async def test_a_refusal_is_no_outage_and_stops_nothing_else(
    site: Site, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_REFUSED_S", 600.0)
    await site.store.put(one := sealed(1))
    site.refuse(number, "put")
    with capture_logs() as lines:
        for tag in range(2, 5):
            with pytest.raises(TierUnavailable, match="no"):
                await site.store.put(sealed(tag))
    assert [line["event"] for line in lines] == ["tier refuses writes"]
    assert site.bucket.up
    assert site.store.refusal.startswith("refuses writes: the object store in /")
    # It is read and evicted meanwhile, which may make room.
    assert (await site.again().get(one.key, Allowance())).sha256 == one.sha256
    assert (await site.store.evict(EvictScope())).artifacts == 1
    site.refuse(0)
    await site.store.put(sealed(1))
    assert site.store.refusal == ""


@pytest.mark.parametrize("what", ["get", "delete", "pages"])
async def test_a_refused_read_deletion_or_listing_stops_nothing_else(site: Site, what: str) -> None:
    one, two = sealed(1), sealed(2)
    await site.store.put(one)
    name = site.store.name_of(one.key) if what == "get" else ""
    site.refuse(errno.EACCES, what, name)
    with capture_logs() as lines:
        for _ in range(3):
            if what == "get":
                with pytest.raises(TierUnavailable):
                    await site.get(one.key)
            else:
                with pytest.raises(TierUnavailable):
                    await site.store.evict(EvictScope())
            await site.store.put(two)
            found = await site.again().get(two.key, Allowance())
            assert found.sha256 == two.sha256
    kinds = {"get": "reads", "delete": "deletions", "pages": "listings"}
    assert [line["event"] for line in lines if "refuses" in line["event"]] == [
        f"tier refuses {kinds[what]}"
    ]
    assert site.bucket.up
    refused = site.notes.lookups.count(("artifact", "error"))
    assert refused == (3 if what == "get" else 0)


async def test_writes_that_wait_are_kept_while_the_store_refuses(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_REFUSED_S", 0.5)
    writes = Writes(site.store, lambda: 10**9)
    site.refuse(errno.ENOSPC, "put")
    for tag in range(6):
        writes.add(sealed(tag))
    await until(lambda: site.files.asked.count("put") == 1)
    site.refuse(0)
    await until(lambda: not writes.items())
    assert writes.dropped == 0
    assert [await site.get(sealed(tag).key) is not None for tag in range(6)] == [True] * 6
    await writes.close()


@pytest.mark.parametrize("call", ["open", "unlink"])
async def test_an_eviction_removes_all_but_what_nobody_may_open_or_delete(
    site: Site, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sealed(tag) for tag in range(3)]
    for tag, each in enumerate(made):
        await site.store.put(each)
        await site.store.put(module(tag))
    shut = made[0].module_sha256 if call == "open" else made[0].key.fingerprint
    usual = getattr(os, call)

    def refuse(path: Any, *asked: Any, **named: Any) -> Any:
        if path == shut:
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(path, *asked, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        # The caller reads that something may be left, also when that is all there is.
        for _ in range(2):
            with pytest.raises(TierUnavailable, match="Permission denied"):
                await site.store.evict(EvictScope())
    kinds = ("compiled", "module")
    left = [key for kind in kinds async for page in site.store.pages(kind) for key, _ in page]
    assert left == [made[0].key]


async def test_a_caller_who_leaves_an_eviction_that_fails_leaves_no_traceback(site: Site) -> None:
    site.refuse(errno.EACCES, "pages")
    await site.store.put(sealed(1))
    told = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))

    async def leave() -> None:
        gate = site.close_gate("pages")
        caller = asyncio.create_task(site.cache().evict(EvictScope(), "object_store"))
        await until(lambda: "pages" in site.files.asked)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.set()
        await until(lambda: not site.store._going)

    await leave()
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def test_the_wait_for_threads_is_no_silence_of_the_store(site: Site) -> None:
    """Eight reads that are answered in time hold up sixteen more for longer than a time-out."""
    await site.store.put(sealed(1))
    namespaces = [site.again(f"{tag}/") for tag in range(3)]
    for tag, each in enumerate(namespaces):
        await each.put(sealed(tag))
    gate, site.bucket.timeout_s = site.close_gate("get"), 4.0
    reads = [
        asyncio.create_task(each.get(sealed(tag + 10 * number).key, Allowance()))
        for tag, each in enumerate(namespaces)
        for number in range(8)
    ]
    await until(lambda: site.files.asked.count("get") == 8)
    await asyncio.sleep(2.8)
    gate.set()
    with capture_logs() as lines:
        await asyncio.gather(*reads)
    assert lines == []
    gate.clear()
    # Threads that a test holds for good are no silence either, while nothing has begun there.
    hold = threading.Event()
    held = [site.bucket._readers.submit(hold.wait, 60) for _ in range(8)]
    with pytest.raises(TierUnavailable, match="all threads"):
        await site.get(sealed(9).key)
    assert site.bucket.up
    hold.set()
    assert held


@pytest.mark.parametrize("call", ["open", "fstat", "read", "stat"])
async def test_a_stale_handle_of_nfs_is_absence(
    site: Site, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.store.put(one := sealed(1))
    usual = getattr(os, call)

    def stale(*asked: Any, **named: Any) -> Any:
        if call != "open" or asked[0] == one.key.fingerprint:
            raise OSError(errno.ESTALE, "Stale file handle")
        return usual(*asked, **named)

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(os, call, stale)
        assert await site.get(one.key) is None or call == "stat"
        assert await site.store.size(one.key) is None or call != "stat"
    assert lines == []
    assert site.bucket.up


async def test_a_large_eviction_goes_on_and_nothing_of_it_is_read_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sealed(tag) for tag in range(5)]
    other = replace(made[0], spec=replace(made[0].spec, fingerprint="f" * 64))
    for each in made:
        await site.store.put(each)
    await site.store.put(module(0))
    monkeypatch.setattr("wasmkilnd.cache.cache._EVICT_WAIT_S", 0.01)
    cache = site.cache()
    gate, engine = site.close_gate("pages"), made[0].spec.engine.id
    with capture_logs() as lines:
        gone, unreachable = await cache.evict(EvictScope(engine_id=engine), "object_store")
        assert (gone, unreachable) == (Evicted(), ["object_store"])
        assert await site.get(made[1].key) is None
        assert await site.get(module(0).sha256) == module(0)
        assert not await site.store.held([each.key for each in (*made, other)])
        gate.set()
        await asyncio.wait(list(cache._background.tasks), timeout=60)
    assert [line["event"] for line in lines] == [
        "an eviction goes on in the background",
        "an eviction has ended",
    ]
    assert lines[-1]["artifacts"] == 5
    assert await site.again().get(made[1].key, Allowance()) is None


async def test_an_eviction_does_not_wait_for_a_write_that_hangs_nor_is_undone_by_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.cache._EVICT_WAIT_S", 0.01)
    site.bucket.timeout_s = 0.1
    redis, one = SharedTier(), sealed(1)
    cache = site.cache(redis)
    gate = site.close_gate("put")
    cache.put(one)
    assert await asyncio.to_thread(site.files.begun.acquire, timeout=60)
    _, unreachable = await asyncio.wait_for(cache.evict(EvictScope(), ""), 30)
    assert unreachable == ["object_store"]
    # A hit is kept again, though the write still hangs after its time-out.
    redis.kept.put(two := sealed(2))
    assert await cache.get(two.key, cache.wait_budget())
    assert cache.memory.peek(two.key)
    await asyncio.sleep(0.3)
    gate.set()
    await asyncio.wait(list(cache._background.tasks), timeout=60)
    assert await site.get(one.key) is None
    await cache.close()


async def test_writes_that_hang_hold_no_more_than_their_queue_and_stop_no_reads(
    site: Site,
) -> None:
    await site.store.put(kept := sealed(100))
    site.bucket.timeout_s = 0.1
    gate = site.close_gate("put")
    writes = Writes(site.store, lambda: 50_000, at_once=4)
    for tag in range(60):
        writes.add(sealed(tag, 20_000))
        await asyncio.sleep(0.05)
        with contextlib.suppress(TierUnavailable):
            await site.get(kept.key)
    gc.collect()
    alive = [x for x in gc.get_objects() if isinstance(x, Artifact) and x.size_bytes == 20_000]
    assert len(alive) <= 4 + 2  # Under way, and waiting.
    assert site.bucket.up
    assert (await site.get(kept.key)).sha256 == kept.sha256
    gate.set()
    await writes.flush(60)
    await writes.close()


async def test_what_a_killed_writer_left_goes_with_a_later_write(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.store.put(sealed(1))
    left = tmp_path / "wasm/.new/0123456789abcdef"
    left.write_bytes(b"half")
    await site.store.put(sealed(2))
    assert left.exists()
    monkeypatch.setattr(object_store, "_STALE_S", -60.0)
    await site.store.put(sealed(3))
    assert not any(left.parent.iterdir())
    assert [len(page) async for page in site.store.pages("compiled")] == [3]


async def test_no_link_to_another_folder_is_followed(site: Site, tmp_path: Path) -> None:
    await site.store.put(one := sealed(1))
    folder = tmp_path / "wasm/3/compiled" / one.module_sha256
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    folder.rename(outside)
    folder.symlink_to(outside)
    assert await site.again().get(one.key, Allowance()) is None
    assert site.notes.rejected == ["format"]
    gone = await site.store.evict(EvictScope())
    assert gone == Evicted()
    assert [path for path in outside.rglob("*") if path.is_file()]


async def test_four_writes_go_on_at_once(site: Site) -> None:
    gate = site.close_gate("put")
    writes = Writes(site.store, lambda: 10**9, at_once=4)

    for tag in range(6):
        writes.add(sealed(tag))
    for _ in range(4):
        assert await asyncio.to_thread(site.files.begun.acquire, timeout=60)
    assert len(site.files.asked) == 4
    gate.set()
    await writes.flush(60)
    assert len(site.files.asked) == 6
    assert not writes.items()
    await writes.close()


def test_prefixes_are_paths() -> None:
    assert prefix_of("wasm:") == "wasm/"
    assert prefix_of("wasm:ns:team-a:") == "wasm/ns/team-a/"
    assert prefix_of("../a//b:.") == "a/b/"


@pytest.mark.parametrize(
    ("text", "why", "refuses"),
    [
        ("status code: 503 Slow Down: <Code>SlowDown</Code>", "answers 503 (SlowDown)", False),
        ("status code: 507 Insufficient Storage", "answers 507", True),
        ("status code: 403 Forbidden: <Code>AccessDenied</Code>", "answers 403 (Acc", True),
        ("GET http://me:secret@host:1/a?sig=secret - HTTP kind: Timeout", "at host:1 does", False),
        ("kind: Builder, source: BadScheme", "has no TLS", True),
    ],
)
def test_an_error_of_a_bucket_is_told_without_its_request(
    text: str, why: str, refuses: bool
) -> None:
    remote = Remote("s3://bucket/prefix", 1.0, 1)
    told, does = remote.why(remote._kinds.GenericError(f"{text} Authorization: secret"))
    assert why in told
    assert does is refuses
    assert "secret" not in told


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
async def test_what_is_no_folder_harms_no_other_object(
    site: Site, tmp_path: Path, kind: str
) -> None:
    one, other = sealed(1), sealed(2)
    bad = tmp_path / "wasm/3/compiled" / one.module_sha256
    bad.parent.mkdir(parents=True)
    if kind == "link":
        bad.symlink_to(tmp_path)
    elif kind == "file":
        bad.write_bytes(b"")
    else:
        os.mkfifo(bad)
    with capture_logs() as lines:
        assert await site.get(one.key) is None
        with pytest.raises(TierUnavailable, match="no folder"):
            await site.store.put(one)
        assert await site.store.evict(EvictScope(module_sha256=one.module_sha256)) == Evicted()
    assert {line["event"] for line in lines} == {"stored value rejected"}
    # All others are written and read.
    await site.store.put(other)
    assert (await site.get(other.key)).sha256 == other.sha256
    assert site.store.refusal == site.bucket.why_down == ""


async def test_a_listing_goes_no_deeper_than_names_and_needs_no_right_to_delete(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.store.put(one := sealed(1))
    stored = tmp_path / site.store.name_of(one.key)
    stored.with_name(".0123456789abcdef").write_bytes(b"half")
    monkeypatch.setattr(object_store, "_STALE_S", -60.0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    # Deeper than functions may call each other.
    folder = os.open(stored.parent, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit()):
        os.mkdir("deep", dir_fd=folder)
        above, folder = folder, os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(above)
    os.close(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        keys = [key async for page in site.store.pages("compiled") for key, _ in page]
    assert keys == [one.key]
    assert (await site.store.evict(EvictScope())).artifacts == 1
    # shutil goes no deeper either.
    await asyncio.to_thread(subprocess.run, ["rm", "-r", str(stored.parents[2])], check=True)


async def test_what_another_daemon_puts_back_during_a_large_eviction_is_evicted_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.cache._EVICT_WAIT_S", 0.01)
    redis, one = SharedTier(), sealed(1)
    cache = site.cache(redis)
    await site.store.put(one)
    gate = site.close_gate("pages")
    engine = EvictScope(engine_id=one.spec.engine.id)
    _, unreachable = await cache.evict(engine, "")
    assert unreachable == ["object_store"]
    redis.kept.put(one)
    assert await cache.get(one.key, cache.wait_budget())
    gate.set()
    await asyncio.wait(list(cache._background.tasks), timeout=60)
    assert not cache.memory.usage().entries + redis.kept.usage().entries
    assert await cache.get(one.key, cache.wait_budget()) is None
    await cache.close()


class Panic(BaseException):
    """What obstore raises where Rust panics, such as for an endpoint that is no URL."""


async def test_a_panic_of_the_library_costs_one_call(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panics(*_: object) -> None:
        raise Panic("request valid: InvalidUri")

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(site.files, "get", panics)
        patched.setattr(site.files, "put", panics)
        with pytest.raises(TierUnavailable, match="a defect"):
            await site.get(sealed(1).key)
        with pytest.raises(TierUnavailable, match="a defect"):
            await site.store.put(sealed(1))
    assert [line["log_level"] for line in lines] == ["error", "error"]
    await site.store.put(one := sealed(1))
    assert (await site.get(one.key)).sha256 == one.sha256
