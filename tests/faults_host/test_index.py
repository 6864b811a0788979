"""The index of the host store: lost, damaged or somebody else's, it costs no entry."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from wasmkilnd.cache.host.tier import HostTier
from wasmkilnd.model import EvictScope

from tests.doubles.notes import Notes
from tests.faults_host.stores import artifact, check_index, check_is_right, entries_on_disk, store

MANY = [artifact(tag, 3000, "wasmer" if tag % 2 else "wasmtime") for tag in range(12)]
INDEX = "index.sqlite"

_read: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    # By a path: what is being deleted, in tmp/, is listed by a descriptor.
    if event in ("os.scandir", "os.listdir") and _read is not None:
        [folder] = arguments
        if isinstance(folder, str | Path):
            _read.append(os.fspath(folder))


sys.addaudithook(_note)


@contextmanager
def folders_read() -> Iterator[list[str]]:
    """Note which folders this process lists."""
    global _read
    _read = []
    try:
        yield _read
    finally:
        _read = None


async def settled(tier: HostTier, entries: int, size_bytes: int) -> None:
    """Wait until the index has all entries again."""
    async with asyncio.timeout(60):
        while (tier.usage().entries, tier.usage().bytes) != (entries, size_bytes):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lose(directory: Path) -> None:
    (directory / INDEX).unlink()


def fill_with_garbage(directory: Path) -> None:
    (directory / INDEX).write_bytes(b"garbage" * 3000)


def damage_pages(directory: Path) -> None:
    path = directory / INDEX
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size_bytes - 4096))


def truncate(directory: Path) -> None:
    os.truncate(directory / INDEX, 5000)


def empty(directory: Path) -> None:
    os.truncate(directory / INDEX, 0)


def anothers(directory: Path) -> None:
    lose(directory)
    with closing(sqlite3.connect(directory / INDEX)) as connection:
        connection.execute("CREATE TABLE entries (something)")


def drop_a_table(directory: Path) -> None:
    with closing(sqlite3.connect(directory / INDEX)) as connection:
        connection.execute("DROP TABLE total")


def wrong_sum(directory: Path) -> None:
    with closing(sqlite3.connect(directory / INDEX)) as connection, connection:
        connection.execute("UPDATE total SET bytes = bytes - 5000")


def a_link(directory: Path) -> None:
    (directory / INDEX).rename(directory.parent / "elsewhere")
    (directory / INDEX).symlink_to(directory.parent / "elsewhere")


def writable(directory: Path) -> None:
    (directory / INDEX).chmod(0o666)


ALL = [
    lose,
    fill_with_garbage,
    damage_pages,
    truncate,
    empty,
    anothers,
    drop_a_table,
    wrong_sum,
    a_link,
    writable,
]


@pytest.mark.parametrize("harm", ALL)
async def test_an_index_that_is_harmed_while_no_daemon_runs(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    directory, notes = tmp_path / "store", Notes()
    async with store(directory) as tier:
        for one in MANY:
            await tier.put(one)
        usage = tier.usage()
    harm(directory)
    async with store(directory, notes) as tier:
        assert all([await check_is_right(tier, one) for one in MANY])
        await settled(tier, usage.entries, usage.bytes)
        # It knows the engines again.
        assert (await tier.evict(EvictScope(engine_id="wasmer-1.0"))).artifacts == 6
        await tier.put(MANY[1])
        assert await check_is_right(tier, MANY[1])
        assert tier.usage().entries == 7
    assert notes.rejected == []
    check_index(directory, 1 << 30)


@pytest.mark.parametrize("harm", [lose, fill_with_garbage, drop_a_table, anothers, writable])
async def test_an_index_that_is_harmed_while_two_daemons_run(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    directory, notes = tmp_path / "store", Notes()
    async with store(directory, notes) as one, store(directory, notes) as two:
        for tier, each in zip((one, two) * 4, MANY[:8], strict=True):
            await tier.put(each)
        harm(directory)
        for tier, each in zip((one, two) * 2, MANY[8:], strict=True):
            await tier.put(each)
        for tier in (one, two):
            assert all([await check_is_right(tier, each) for each in MANY])
            tier.resize(100_000_000)  # Wakes the housekeeping.
            await settled(tier, len(MANY), sum(entries_on_disk(directory).values()))
    assert notes.rejected == []
    check_index(directory, 1 << 30)


async def test_entries_that_somebody_deleted_are_forgotten_at_the_next_start(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "store"
    async with store(directory) as tier:
        for one in MANY:
            await tier.put(one)
    for path in directory.glob("[0-9a-f]*/??/[0-9a-f]*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with closing(sqlite3.connect(directory / INDEX)) as connection, connection:
        connection.execute("UPDATE notes SET value = 'an earlier start of the machine'")
    async with store(directory) as tier:
        await settled(tier, 0, 0)
    check_index(directory, 0)


async def test_a_start_reads_no_entry(tmp_path: Path) -> None:
    """Neither the start nor what follows behind it lists a folder, but for tmp/."""
    directory = tmp_path / "store"
    async with store(directory) as tier:
        for one in MANY:
            await tier.put(one)
        await asyncio.sleep(0.1)
    with folders_read() as read:
        async with store(directory) as tier:
            assert tier.usage().entries == len(MANY)
            assert all([await check_is_right(tier, one) for one in MANY])
            await asyncio.sleep(0.1)
    assert set(read) == {f"{directory}/tmp"}
