"""The host store as a tier: which files there are, what goes first, and what never comes back."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import shutil
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkiln.shared import ENGINES, entry_path
from wasmkiln.v1.types_pb2 import ArtifactHeader
from wasmkilnd import wire
from wasmkilnd.cache import host_store as module
from wasmkilnd.cache.host_store import HostStore, measure
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope
from wasmkilnd.rpc.messages import header_of
from wasmkilnd.waits.budgets import Allowance

from tests.contract.host_store import host_store
from tests.contract.sealing import sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import payload_of, same
from tests.doubles.notes import Notes
from tests.doubles.until import until
from tests.faults_host.stores import tidied

SEALER = sealer()
PINNING_BYTES = 8 * 20 * 1024


def artifact(tag: int = 0, size_bytes: int = 1000) -> Artifact:
    return SEALER.seal(unsigned(tag, size_bytes))


def folder_of(directory: Path, one: Artifact) -> Path:
    return entry_path(directory, one.spec.fingerprint, one.module_sha256)


@asynccontextmanager
async def started(tier: HostStore) -> AsyncIterator[HostStore]:
    await tier.start()
    try:
        yield tier
    finally:
        await tier.close()


async def test_a_daemon_of_another_version_may_say_more_in_a_header(tmp_path: Path) -> None:
    def newer(artifact: Artifact) -> ArtifactHeader:
        header = header_of(artifact)
        header.queue_time.seconds = 1
        return header

    one = artifact(1)
    async with started(host_store(tmp_path, SEALER, header_of=newer)) as other:
        await other.put(one)
    notes = Notes()
    async with started(host_store(tmp_path, SEALER, notes)) as tier:
        assert same(await tier.get(one.key), one)
        assert await tier.file_of(one.key)
    assert not notes.rejected


async def test_an_entry_of_0_6_0_is_served(tmp_path: Path) -> None:
    """It has a file more, by which a daemon of that version checks it."""
    one, notes = artifact(1, 700_000), Notes()
    async with started(host_store(tmp_path, SEALER)) as tier:
        await tier.put(one)
    (folder_of(tmp_path, one) / "head").write_bytes(b"a head" * 100)
    for name in ("index.sqlite", "index.sqlite-wal", "index.lock"):
        (tmp_path / name).write_bytes(b"an index")
    async with started(host_store(tmp_path, SEALER, notes)) as tier:
        assert same(await tier.get(one.key), one)
        assert await tier.file_of(one.key)
        assert await tier.evict(EvictScope()) == Evicted(artifacts=1, bytes=measured(one, files=4))
    assert notes.rejected == []
    assert not folder_of(tmp_path, one).exists()
    assert (tmp_path / "index.sqlite").exists()  # A daemon of 0.6.0 may use it.


def measured(one: Artifact, files: int) -> int:
    """What counts for an entry: a folder and some files, each rounded up to 4 KiB."""
    return 4096 * (files + -(-one.size_bytes // 4096))


@pytest.mark.parametrize(
    ("mode", "folder_mode"), [(0o600, 0o700), (0o640, 0o750), (0o644, 0o755), (0o440, 0o750)]
)
async def test_modes_and_group(tmp_path: Path, mode: int, folder_mode: int) -> None:
    group = 12345 if os.geteuid() == 0 else os.getegid()
    old = os.umask(0o077)
    try:
        tier = host_store(tmp_path / "a" / "store", SEALER, file_mode=mode, group=group)
        async with started(tier):
            await tier.put(artifact(1))
    finally:
        os.umask(old)
    directory = tmp_path / "a" / "store"
    entry = folder_of(directory, artifact(1))
    folders = [directory, entry, *entry.parents[:2]]
    for path in (*entry.iterdir(), directory / ENGINES, *folders):
        found = path.lstat()
        expected = folder_mode if path in folders else mode
        assert stat.S_IMODE(found.st_mode) == expected
        assert found.st_gid == group
    for name in ("writing.lock", "aside"):
        assert not stat.S_IMODE((directory / name).stat().st_mode) & 0o077


async def test_the_least_recently_used_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIDY_EVERY_S", 0.1)
    many = [artifact(tag) for tag in range(6)]
    async with started(host_store(tmp_path, SEALER)) as tier:
        for place, one in enumerate(many[:4]):
            await tier.put(one)
            age(tmp_path, one, 1000 - place)
    # A new process: the old one would not note a use so soon.
    async with started(host_store(tmp_path, SEALER)) as tier:
        before_s = folder_of(tmp_path, many[0]).stat().st_mtime
        assert await tier.file_of(many[0].key)
    assert folder_of(tmp_path, many[0]).stat().st_mtime > before_s
    size_bytes = measure(folder_of(tmp_path, many[0]))[0]
    async with started(host_store(tmp_path, SEALER, limit_bytes=4 * size_bytes)) as tier:
        for one in many[4:]:
            await tier.put(one)
        held = await tier.held([one.key for one in many])
        assert held == {many[place].key for place in (0, 3, 4, 5)}
        assert tier.usage().evictions == 2
        assert (tier.usage().entries, tier.usage().bytes) == (4, 4 * size_bytes)
        tier.limit_bytes = size_bytes
        await until(lambda: tier.usage().entries == 1)
        assert tier.usage().limit_bytes == size_bytes


def age(directory: Path, one: Artifact, seconds: int) -> None:
    """Make an entry one that was used some time ago, by daemons and by clients."""
    then_s = int(time.time()) - seconds
    path = folder_of(directory, one)
    for each in (path / "artifact", path):
        os.utime(each, (then_s, then_s))


async def test_what_clients_read_by_themselves_is_spared_once(tmp_path: Path) -> None:
    many = [artifact(tag) for tag in range(4)]
    async with started(host_store(tmp_path, SEALER)) as tier:
        for place, one in enumerate(many[:2]):
            await tier.put(one)
            age(tmp_path, one, 1000 - place)
        size_bytes = tier.usage().bytes // 2
    now_s = time.time()
    os.utime(folder_of(tmp_path, many[0]) / "artifact", (now_s - 5, now_s - 1000))
    async with started(host_store(tmp_path, SEALER, limit_bytes=2 * size_bytes)) as tier:
        for one, gone in ((many[2], many[1]), (many[3], many[0])):
            await tier.put(one)
            assert not await tier.held([gone.key])
        assert await tier.held([one.key for one in many]) == {many[2].key, many[3].key}


@pytest.mark.parametrize("name", ["artifact", "artifact.json"])
async def test_a_file_that_the_daemon_may_not_read_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    one, notes = artifact(1), Notes()

    def refuse(path: str) -> FileIO:
        if Path(path).name == name:  # As root reads a file of mode 0.
            raise PermissionError(13, "Permission denied")
        return FileIO(path)

    async with started(host_store(tmp_path, SEALER)) as tier:
        await tier.put(one)
    async with started(host_store(tmp_path, SEALER, notes)) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(module, "FileIO", refuse)
            assert await tier.get(one.key) is None
        assert notes.rejected == ["foreign"]
        assert not folder_of(tmp_path, one).exists()
        await tier.put(one)
        assert same(await tier.get(one.key), one)


async def test_engines_json_is_whole_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIDY_EVERY_S", 0.02)
    directory, served = tmp_path / "store", list[dict[str, str]]()
    path = directory / ENGINES
    store = host_store(directory, SEALER, engines=lambda: {"version": 1, "engines": [*served]})

    def is_new() -> bool:
        """Another file than the one that a link to holds, which no new file can be."""
        found = path.lstat() if path.exists() else None
        return bool(
            found
            and (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o640, 1)
            and json.loads(path.read_text())["engines"] == served
        )

    async with started(store) as tier:
        for number, harm in enumerate(("replaced", "gone", "directory", "refused")):
            (tmp_path / f"kept{number}").hardlink_to(path)
            match harm:
                case "replaced":
                    served.append({"id": "wasmtime-1.0"})
                    await tier.write_engines()
                    assert is_new()
                case "gone":
                    path.unlink()
                case "directory":
                    shutil.rmtree(directory, ignore_errors=True)  # It is in use.
                case "refused":
                    served.append({"id": "wasmtime-2.0"})
                    with monkeypatch.context() as patch:
                        refuse_writes(patch)
                        await tier.write_engines()
                        assert not is_new()
            await until(is_new)
        # That of another daemon stays.
        theirs = {"version": 1, "engines": [{"id": "wasmtime-3.0"}]}
        async with started(host_store(directory, SEALER, engines=lambda: theirs)):
            rounds = tier.directory.rounds
            await until(lambda: tier.directory.rounds >= rounds + 4)
        assert json.loads(path.read_text()) == theirs


async def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.host_store._TIDY_EVERY_S", 0.02)
    monkeypatch.setattr("wasmkilnd.cache.host_store._SCAN_EVERY_S", 0.0)

    def refuse(_: object) -> None:
        raise OSError(24, "Too many open files")

    async with started(host_store(tmp_path, SEALER)) as tier:
        await tidied(tier)
        await tier.put(artifact(1))
        taken = (tmp_path / "writing.lock").read_text()
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.iterdir", refuse)
            await until(lambda: "Too many open files" in tier.trouble)
            assert tier.usage().entries == 1
            assert (tmp_path / "writing.lock").read_text() == taken
        await until(lambda: tier.is_well)


async def test_an_entry_that_cannot_be_removed_keeps_no_other_from_making_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes, new = (artifact(tag, 100_000) for tag in range(3))
    remove = module.remove_entry

    def some(options: module.HostOptions, key: CacheKey) -> bool:
        return key != stays.key and remove(options, key)

    async with started(host_store(tmp_path, SEALER, limit_bytes=250_000)) as tier:
        await tidied(tier)
        await tier.put(stays)
        await tier.put(goes)
        monkeypatch.setattr(module, "remove_entry", some)
        await tier.put(new)
        assert await tier.held([stays.key, goes.key, new.key]) == {stays.key, new.key}
        monkeypatch.setattr(module, "remove_entry", lambda *_: False)
        with pytest.raises(TierUnavailable, match="cannot make room"):
            await tier.put(goes)
        assert tier.usage().bytes <= 250_000


async def test_a_disk_that_hangs_holds_up_neither_start_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr("wasmkilnd.cache.host_store.prepare", lambda _: hangs.wait(60))
    monkeypatch.setattr("wasmkilnd.cache.host_store._PATIENCE_S", 0.05)
    tier = host_store(tmp_path, SEALER)
    await tier.start()
    await tier.close()
    assert not hangs.is_set()
    # Nor is a thread of the event loop left behind that waits for the disk.
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 20)
    assert not hangs.is_set()
    hangs.set()


async def test_a_look_up_that_waits_for_a_thread_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, goes_on, check = artifact(1), threading.Event(), module.check_root
    allowances = [Allowance() for _ in range(10)]

    def slow(path: Path) -> None:
        assert goes_on.wait(60)
        check(path)

    async with started(host_store(tmp_path, SEALER, wait_s=60)) as tier:
        await tidied(tier)
        await tier.put(one)
        monkeypatch.setattr(module, "check_root", slow)
        looks = [asyncio.create_task(tier.get(one.key, each)) for each in allowances]
        await asyncio.sleep(0.05)
        # Of these no time is counted yet.
        assert [math.isinf(each.seconds) for each in allowances] == [False] * 4 + [True] * 6
        assert tier.is_well
        goes_on.set()
        assert all(same(found, one) for found in await asyncio.gather(*looks))


async def test_a_disk_that_hangs_costs_one_look_up_its_time_and_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, hangs, looks, notes = artifact(1), threading.Event(), list[object](), Notes()
    monkeypatch.setattr(module, "_NO_WRITES_S", 0.2)

    def hang(path: Path) -> None:
        looks.append(path)
        assert hangs.wait(60)

    async with started(host_store(tmp_path, SEALER, notes, wait_s=0.5)) as tier:
        await tidied(tier)
        await tier.put(one)
        with monkeypatch.context() as patch:
            patch.setattr(module, "check_root", hang)
            for look_up in (tier.get(one.key), tier.get(one.key), tier.file_of(one.key)):
                with pytest.raises(TierUnavailable, match="does not answer"):
                    await look_up
            with pytest.raises(TierUnavailable, match="does not answer"):
                await tier.put(one)
            assert not tier.takes(one)
            assert not tier.is_well
            assert (len(looks), tier.skipped) == (1, 1)
        hangs.set()
        await until(lambda: tier.is_well)
        assert same(await tier.get(one.key), one)
        assert notes.lookups == [("artifact", "error")] * 3 + [("artifact", "hit")]


async def test_what_does_not_fit_is_read_as_it_is_sent(tmp_path: Path) -> None:
    """All calls read the file that was checked, whatever becomes of the entry."""
    one, notes = artifact(1, 1_300_000), Notes()
    async with started(host_store(tmp_path, SEALER, notes)) as tier:
        await tier.put(one)
        await tier.put(artifact(2, wire.CHUNK_BYTES))
        assert same(await tier.get(one.key, None, lambda size_bytes: size_bytes == 1_300_000), one)
        found = await tier.get(one.key, None, lambda size_bytes: False)
        assert found
        assert found.pieces
        assert same(replace(found, pieces=None), replace(one, frames=()))
        # A frame is a piece.
        small = await tier.get(artifact(2).key, None, lambda size_bytes: False)
        assert small
        assert len(small.frames) == 1
        assert await tier.evict(EvictScope())
        for offset_bytes in (0, 1, 600_000, 1_299_999):
            got = [await each for each in found.pieces(offset_bytes)]
            assert payload_of(got) == payload_of(one.frames)[offset_bytes:]
            assert len(got) == -(-(1_300_000 - offset_bytes) // wire.CHUNK_BYTES)


async def test_every_hit_has_the_description_that_the_store_keeps(tmp_path: Path) -> None:
    """And none that an earlier entry left: an artifact would hold all of them."""
    one = artifact(1, 1_300_000)
    async with started(host_store(tmp_path, SEALER)) as tier:
        for _ in range(3):
            await tier.put(one)
            whole = [await tier.get(one.key) for _ in range(2)]
            hits = [*whole, await tier.get(one.key, None, lambda size_bytes: False)]
            described = {each.described for each in hits if each}
            assert len(described) == 1
            assert same(kept := described.pop(), replace(one, frames=(), described=None))
            assert kept
            assert kept.described is None
            assert hits[0]
            one = hits[0]
            await tier.evict(EvictScope())


async def test_all_calls_share_the_file_that_they_are_sent(tmp_path: Path) -> None:
    one = artifact(1, 1_300_000)

    def opened() -> int:
        file = folder_of(tmp_path, one) / "artifact"
        descriptors = map(str, Path("/proc/self/fd").iterdir())
        return sum(os.path.realpath(each) == os.fspath(file) for each in descriptors)

    async with started(host_store(tmp_path, SEALER)) as tier:
        await tier.put(one)
        found = [await tier.get(one.key, None, lambda _: False) for _ in range(9)]
        assert opened() == 1
        # A caller who goes before he is sent a frame leaves nothing: warnings are errors.
        assert found[0]
        assert found[0].pieces
        assert next(found[0].pieces(0))
        found.clear()
        gc.collect()
        await until(lambda: not opened())  # The thread that found it may hold it a moment longer.


async def test_a_file_that_is_cut_while_it_is_sent_ends_the_answer(tmp_path: Path) -> None:
    one = artifact(1, 1_300_000)
    async with started(host_store(tmp_path, SEALER)) as tier:
        await tier.put(one)
        found = await tier.get(one.key, None, lambda size_bytes: False)
        assert found
        assert found.pieces
        os.truncate(folder_of(tmp_path, one) / "artifact", 700_000)
        first, second, third = found.pieces(0)
        assert payload_of([await first]) == payload_of(one.frames[:1])
        for each in (second, third):
            with pytest.raises(WasmkilnError, match="was cut") as failure:
                await each
            assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
        # Nobody gets any of it again.
        assert await tier.get(one.key, None, lambda size_bytes: False) is None


async def test_what_is_larger_than_the_store_is_counted_each_time_and_told_once(
    tmp_path: Path,
) -> None:
    notes = Notes()
    async with started(host_store(tmp_path, SEALER, notes, limit_bytes=1_000_000)) as tier:
        with capture_logs() as lines:
            assert [tier.takes(artifact(tag, 1_000_000)) for tag in (1, 1, 2)] == [False] * 3
        told = [line["module"] for line in lines if line["log_level"] == "warning"]
        assert told == [artifact(tag, 1_000_000).module_sha256 for tag in (1, 2)]
        assert (notes.stores, tier.skipped) == (["too_large"] * 3, 3)
        assert tier.takes(artifact(3, 900_000))


def refuse_writes(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(module, "_write_file", refuse)


async def test_a_defect_of_the_store_is_no_failure_of_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    async with started(host_store(tmp_path, SEALER)) as tier:
        await tier.put(artifact(1))
        tier.directory.recheck()
        monkeypatch.setattr(module, "_artifact_of", broken)
        with pytest.raises(TierUnavailable, match="defect"):
            await tier.get(artifact(1).key)


# Pins


def pinning(folder: Path, pins: set[str]) -> HostStore:
    """A store of eight entries."""
    return host_store(folder, SEALER, limit_bytes=PINNING_BYTES, is_pinned=pins.__contains__)


async def test_more_than_half_of_the_store_is_not_held(tmp_path: Path) -> None:
    many = [artifact(tag, 3000) for tag in range(20)]
    pins = {each.module_sha256 for each in many}
    async with started(pinning(tmp_path, pins)) as tier:
        for each in many:
            await tier.put(each)  # It ends, though all that could make room is pinned.
        assert tier.usage().bytes <= PINNING_BYTES
        assert tier.usage().let_go > 0
        await tier.count_pinned(pins)
        assert 2 * tier.usage().pinned_bytes <= PINNING_BYTES
        held = tier.entries_of(pins)
        for tag in range(20, 40):
            await tier.put(artifact(tag, 3000))
        left = await tier.held([*held])
        assert tier.usage().pinned_entries <= len(left) < len(held)


async def test_an_entry_that_was_unpinned_ages_like_any_other(tmp_path: Path) -> None:
    once, used = artifact(0, 3000), artifact(1, 3000)
    pins = {once.module_sha256}
    async with started(pinning(tmp_path, pins)) as tier:
        await tier.put(once)
        await tier.put(used)
        for tag in range(2, 20):  # What is pinned is passed over again and again.
            await tier.put(artifact(tag, 3000))
            assert await tier.get(used.key)
        pins.clear()
        for tag in range(20, 28):
            assert await tier.get(used.key)
            await tier.put(artifact(tag, 3000))
        assert await tier.held([once.key, used.key]) == {used.key}


def test_what_another_daemon_stores_again_at_once_was_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = module.HostOptions(tmp_path, 250_000)
    module.prepare(options)
    entry = tmp_path / "entry"
    entry.mkdir()
    monkeypatch.setattr(module, "_delete", lambda _: entry.mkdir())
    assert module.remove(entry, options)
    assert entry.is_dir()
