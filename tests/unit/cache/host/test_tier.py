"""The host store as a tier: which files there are, what goes first, and what never comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import mmap
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import zstandard
from structlog.testing import capture_logs
from wasmkiln.artifact import Artifact as ClientArtifact
from wasmkiln.host_layout import ENGINES, entry_path
from wasmkiln.v1.types_pb2 import ArtifactHeader
from wasmkilnd import wire
from wasmkilnd.cache.host import engines_file
from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.entry import disk_bytes_at
from wasmkilnd.cache.host.tier import HostTier
from wasmkilnd.cache.value.marks import Marks
from wasmkilnd.cache.value.pieces import ZSTD
from wasmkilnd.errors import DoesNotFit, TierUnavailable
from wasmkilnd.model import Artifact, CacheKey, EvictScope
from wasmkilnd.rpc.wire.headers import header_of

from tests.contract.host_store import host_tier
from tests.contract.sealing import MADE_S, sealer
from tests.contract.values import artifact as unsigned
from tests.contract.values import payload_of, same
from tests.doubles.notes import Notes

SEALER = sealer()


def artifact(tag: int = 0, size_bytes: int = 1000) -> Artifact:
    return SEALER.seal(unsigned(tag, size_bytes))


def folder_of(directory: Path, one: Artifact) -> Path:
    return entry_path(directory, one.spec.fingerprint, one.module_sha256)


@asynccontextmanager
async def started(tier: HostTier) -> AsyncIterator[HostTier]:
    await tier.start()
    try:
        yield tier
    finally:
        await tier.close()


async def test_the_files_are_what_the_client_saves(tmp_path: Path) -> None:
    one = artifact(1, 700_000)
    async with started(host_tier(tmp_path / "store", SEALER)) as tier:
        await tier.put(one)
        found = await tier.file_of(one.key)
    assert found
    assert found[0].frames == ()
    path = Path(found[1].path)
    opened = ClientArtifact.open(path)
    assert opened.header == header_of(one)
    assert not opened.header.origin
    opened.save(tmp_path / "artifact")
    for suffix in ("", ".json", ".dsse.json"):
        assert (
            path.with_name("artifact" + suffix).read_bytes()
            == (tmp_path / ("artifact" + suffix)).read_bytes()
        )


async def test_a_daemon_of_another_version_may_say_more_in_a_header(tmp_path: Path) -> None:
    def newer(artifact: Artifact) -> ArtifactHeader:
        header = header_of(artifact)
        header.queue_time.seconds = 1
        return header

    one = artifact(1)
    async with started(host_tier(tmp_path, SEALER, header_of=newer)) as other:
        await other.put(one)
    notes = Notes()
    async with started(host_tier(tmp_path, SEALER, notes)) as tier:
        assert same(await tier.get(one.key), one)
        assert await tier.file_of(one.key)
    assert not notes.rejected


async def test_a_header_of_another_entry_is_rejected(tmp_path: Path) -> None:
    one, two = artifact(1), artifact(2)
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(one)
        await tier.put(two)
    ours, theirs = folder_of(tmp_path, one), folder_of(tmp_path, two)
    head, stamp = (ours / "head").read_bytes()[:-96], (theirs / "head").read_bytes()[-96:]
    (ours / "head").write_bytes(head + stamp)
    (ours / "artifact.json").write_bytes((theirs / "artifact.json").read_bytes())
    notes = Notes()
    async with started(host_tier(tmp_path, SEALER, notes)) as tier:
        assert await tier.get(one.key) is None
    assert notes.rejected
    assert not ours.exists()


async def test_an_artifact_without_attestation_has_no_file_for_it(tmp_path: Path) -> None:
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(unsigned(1))
        assert {path.name for path in folder_of(tmp_path, unsigned(1)).iterdir()} == {
            "artifact",
            "artifact.json",
            "head",
        }
        assert await tier.get(unsigned(1).key) is None  # Which nobody vouches for.


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
async def test_modes_and_group(tmp_path: Path, mode: int) -> None:
    group = 12345 if os.geteuid() == 0 else os.getegid()
    old = os.umask(0o077)
    try:
        tier = host_tier(tmp_path / "a" / "store", SEALER, file_mode=mode, group=group)
        async with started(tier):
            await tier.put(artifact(1))
            await tier.write_engines({"version": 1})
    finally:
        os.umask(old)
    directory = tmp_path / "a" / "store"
    entry = folder_of(directory, artifact(1))
    folders = [directory, entry, *entry.parents[:2]]
    for path in (*entry.iterdir(), directory / ENGINES, *folders):
        found = path.lstat()
        expected = tier_folder_mode(mode) if path in folders else mode
        assert stat.S_IMODE(found.st_mode) == expected
        assert found.st_gid == group
    for name in ("index.sqlite", "tmp"):
        assert not stat.S_IMODE((directory / name).stat().st_mode) & 0o077


def mapping_of(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def tier_folder_mode(mode: int) -> int:
    return {0o600: 0o700, 0o640: 0o750, 0o644: 0o755}[mode]


async def test_an_encoded_artifact_is_stored_decoded(tmp_path: Path) -> None:
    one = artifact(1, 1_200_000)
    pieces = [zstandard.compress(view) for view in wire.payload_views(one.frames)]
    packed = dataclasses.replace(one, frames=tuple(map(wire.frame, pieces)), encoding=ZSTD)
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(packed)
        assert same(await tier.get(one.key), one)
    assert (folder_of(tmp_path, one) / "artifact").read_bytes() == payload_of(one.frames)


async def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    many = [artifact(tag) for tag in range(6)]
    async with started(host_tier(tmp_path, SEALER)) as tier:
        for place, one in enumerate(many[:4]):
            await tier.put(one)
            age(tmp_path, one, 1000 - place)
    # A new process: the old one would not note a use so soon.
    async with started(host_tier(tmp_path, SEALER)) as tier:
        before_s = folder_of(tmp_path, many[0]).stat().st_mtime
        assert await tier.file_of(many[0].key)
    assert folder_of(tmp_path, many[0]).stat().st_mtime > before_s
    size_bytes = disk_bytes_at(folder_of(tmp_path, many[0]))
    async with started(host_tier(tmp_path, SEALER, limit_bytes=4 * size_bytes)) as tier:
        for one in many[4:]:
            await tier.put(one)
        held = await tier.held([one.key for one in many])
        assert held == {many[place].key for place in (0, 3, 4, 5)}
        assert tier.usage().evictions == 2
        assert (tier.usage().entries, tier.usage().bytes) == (4, 4 * size_bytes)
        tier.resize(size_bytes)
        async with asyncio.timeout(30):
            while tier.usage().entries > 1:  # noqa: ASYNC110 - another thread does it
                await asyncio.sleep(0.01)
        assert tier.usage().limit_bytes == size_bytes


def age(directory: Path, one: Artifact, seconds: int) -> None:
    """Make an entry one that was used some time ago, by daemons and by clients."""
    then_s = int(time.time()) - seconds
    path = folder_of(directory, one)
    for each in (path / "artifact", path):
        os.utime(each, (then_s, then_s))
    with closing(sqlite3.connect(directory / "index.sqlite", timeout=30)) as index, index:
        index.execute(
            "UPDATE entries SET used = ? WHERE module = ?",
            (then_s, bytes.fromhex(one.module_sha256)),
        )


async def test_what_clients_read_by_themselves_is_spared(tmp_path: Path) -> None:
    many = [artifact(tag) for tag in range(3)]
    async with started(host_tier(tmp_path, SEALER)) as tier:
        for place, one in enumerate(many[:2]):
            await tier.put(one)
            age(tmp_path, one, 1000 - place)
        size_bytes = tier.usage().bytes // 2
        now_s = time.time()
        os.utime(folder_of(tmp_path, many[0]) / "artifact", (now_s - 5, now_s - 1000))
        tier.resize(2 * size_bytes)
        await tier.put(many[2])
        assert await tier.held([one.key for one in many]) == {many[0].key, many[2].key}


async def test_what_is_larger_than_the_store_is_not_kept(tmp_path: Path) -> None:
    async with started(host_tier(tmp_path, SEALER, limit_bytes=50_000)) as tier:
        await tier.put(artifact(1, 1000))
        with pytest.raises(DoesNotFit, match="50000: raise host_store_bytes"):
            await tier.put(artifact(2, 60_000))
        assert await tier.held([artifact(1).key, artifact(2).key]) == {artifact(1).key}
        assert await tier.get(artifact(1).key)


async def test_what_is_larger_than_the_store_is_told_once(tmp_path: Path) -> None:
    tier = host_tier(tmp_path, SEALER, limit_bytes=50_000)
    with capture_logs() as logged:
        assert tier.fits(artifact(1, 1000))
        for _ in range(3):
            assert not tier.fits(artifact(2, 60_000))
    [line] = [each for each in logged if each["log_level"] == "warning"]
    assert (line["bytes"], line["limit_bytes"]) == (60_000, 50_000)
    assert "host_store_bytes" in line["event"]
    await tier.close()


@pytest.mark.parametrize("name", ["artifact", "head"])
async def test_a_file_that_the_daemon_may_not_read_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    one, notes, open_ = artifact(1), Notes(), os.open

    def refuse(path: str | Path, flags: int, *args: int, **folder: Any) -> int:
        if path == name and not flags & os.O_CREAT:  # As root reads a file of mode 0.
            raise PermissionError(13, "Permission denied")
        return open_(path, flags, *args, **folder)

    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(one)
    async with started(host_tier(tmp_path, SEALER, notes)) as tier:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert await tier.get(one.key) is None
        assert notes.rejected == ["foreign"]
        assert not folder_of(tmp_path, one).exists()
        await tier.put(one)
        assert same(await tier.get(one.key), one)


async def test_an_eviction_leaves_what_is_mapped(tmp_path: Path) -> None:
    one = artifact(1, 300_000)
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(one)
        found = await tier.file_of(one.key)
        assert found
        mapped = mapping_of(Path(found[1].path))
        assert (await tier.evict(EvictScope())).artifacts == 1
        assert await tier.file_of(one.key) is None
        assert mapped[:] == payload_of(one.frames)
        mapped.close()


async def test_what_was_evicted_elsewhere_is_not_used_and_not_stored(tmp_path: Path) -> None:
    one, other = artifact(1), artifact(2)
    marks, notes = Marks(lambda: MADE_S + 1), Notes()
    async with started(host_tier(tmp_path, SEALER, notes, marks=marks)) as tier:
        await tier.put(one)
        await tier.put(other)
        assert await tier.file_of(one.key)
        marks.evict(EvictScope(module_sha256=one.module_sha256))  # As another daemon's mark says.
        assert await tier.file_of(one.key) is None
        assert notes.rejected == ["evicted"]
        assert not folder_of(tmp_path, one).exists()
        await tier.put(one)
        assert await tier.get(one.key) is None
        assert same(await tier.get(other.key), other)
        marks.evict(EvictScope(engine_id="wasmtime-1.0"))
        assert await tier.get(other.key) is None
        assert notes.rejected == ["evicted"] * 2


async def test_an_eviction_here_leaves_no_mark(tmp_path: Path) -> None:
    marks = Marks(lambda: MADE_S + 1)
    async with started(host_tier(tmp_path, SEALER, marks=marks)) as tier:
        await tier.put(artifact(1))
        await tier.evict(EvictScope())
        await tier.put(artifact(1))
        assert await tier.file_of(artifact(1).key)


async def test_a_put_of_what_is_there_writes_nothing(tmp_path: Path) -> None:
    one = artifact(1)
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(one)
        before = await tier.file_of(one.key)
        await tier.put(one)
        after = await tier.file_of(one.key)
        assert before
        assert after
        assert before[1] == after[1]


async def test_callers_of_one_entry_share_its_check(tmp_path: Path) -> None:
    class Counting(type(SEALER)):  # type: ignore[misc]
        checks = 0

        def verify(self, artifact: Artifact, key: CacheKey) -> object:
            Counting.checks += 1
            return SEALER.verify(artifact, key)

    counting = Counting.__new__(Counting)
    counting.__dict__.update(SEALER.__dict__)
    one = artifact(1, 2_000_000)
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.put(one)
    async with started(host_tier(tmp_path, counting)) as tier:
        leaving = asyncio.create_task(tier.file_of(one.key))
        staying = [asyncio.create_task(tier.file_of(one.key)) for _ in range(20)]
        await asyncio.sleep(0)
        leaving.cancel()
        found = await asyncio.gather(*staying)
        assert len({file[1] for file in found if file}) == 1
        assert None not in found
        assert Counting.checks == 1


async def test_a_key_that_names_another_place_is_a_miss(tmp_path: Path) -> None:
    notes = Notes()
    async with started(host_tier(tmp_path / "store", SEALER, notes)) as tier:
        for key in (CacheKey("../x", "../.."), CacheKey("a" * 64, "."), CacheKey("", "b" * 64)):
            assert await tier.get(key) is None
            assert await tier.file_of(key) is None
            assert await tier.held([key]) == frozenset()
            assert await tier.kinds_of([key]) == {}
        assert (
            await tier.evict(EvictScope(module_sha256="../.."))
            == type(await tier.evict(EvictScope()))()
        )
    assert notes.rejected == []


async def test_engines_json_is_replaced_whole(tmp_path: Path) -> None:
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.write_engines({"version": 1, "engines": []})
        first = (tmp_path / ENGINES).stat().st_ino
        await tier.write_engines({"version": 1, "engines": [{"id": "wasmtime-1.0"}]})
        assert (tmp_path / ENGINES).stat().st_ino != first
        assert json.loads((tmp_path / ENGINES).read_text())["engines"] == [{"id": "wasmtime-1.0"}]


@pytest.mark.parametrize(
    "harm",
    ["directory", "gone", "junk", "other JSON", "link", "folder", "group writes", "second name"],
)
async def test_engines_json_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.host.tier._EVERY_S", 0.02)
    directory = tmp_path / "store"
    path, document = directory / ENGINES, {"version": 1, "engines": []}
    async with started(host_tier(directory, SEALER)) as tier:
        await tier.write_engines(document)
        old = path.stat().st_ino
        (tmp_path / "kept").hardlink_to(path)  # So that no new file gets its inode.
        if harm == "directory":
            shutil.rmtree(directory, ignore_errors=True)  # The index is in use.
        elif harm == "group writes":
            path.chmod(0o660)
        elif harm != "second name":
            path.unlink()
        if harm in ("junk", "other JSON"):
            path.write_text("{" if harm == "junk" else "[]")
        elif harm == "link":
            path.symlink_to(tmp_path / "kept")
        elif harm == "folder":
            (path / "in it").mkdir(parents=True)

        def is_back() -> bool:
            found = path.lstat() if path.exists() else None
            return bool(
                found
                and (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o640, 1)
                and found.st_ino != old
                and json.loads(path.read_text()) == document
            )

        await until(is_back)


async def test_engines_json_of_another_daemon_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.host.tier._EVERY_S", 0.02)
    theirs = {"version": 1, "engines": [{"id": "wasmtime-1.0"}]}
    async with started(host_tier(tmp_path, SEALER)) as tier:
        await tier.write_engines({"version": 1, "engines": []})
        async with started(host_tier(tmp_path, SEALER)) as other:
            await other.write_engines(theirs)
            looks = looks_of(monkeypatch)
            await until(lambda: len(looks) >= 4)
        assert json.loads((tmp_path / ENGINES).read_text()) == theirs


def looks_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each look at the file."""
    looks = list[str]()

    def look(disk: Disk) -> str:
        looks.append(wrong(disk))
        return looks[-1]

    wrong = engines_file._wrong
    monkeypatch.setattr(engines_file, "_wrong", look)
    return looks


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - another thread does it
            await asyncio.sleep(0.01)


async def test_a_closed_store_is_unavailable(tmp_path: Path) -> None:
    tier = host_tier(tmp_path, SEALER)
    await tier.start()
    await tier.put(artifact(1))
    await tier.close()
    await tier.close()
    with pytest.raises(TierUnavailable, match="closed"):
        await tier.get(artifact(1).key)
    assert tier.usage().entries == 1


async def test_a_disk_that_hangs_holds_up_neither_start_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr("wasmkilnd.cache.host.housekeeping.prepare", lambda _: hangs.wait(60))
    monkeypatch.setattr("wasmkilnd.cache.host.tier._HANGS_S", 0.05)
    tier = host_tier(tmp_path, SEALER)
    await tier.start()
    await tier.close()
    assert not hangs.is_set()
    hangs.set()


async def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with started(host_tier(Path("store"), SEALER)) as tier:
        await tier.put(artifact(1))
        found = await tier.file_of(artifact(1).key)
    assert found
    assert found[1].path == str(folder_of(tmp_path / "store", artifact(1)) / "artifact")
