"""Programs that run in a namespace of their own, on a small file system that they mount there."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from structlog.testing import capture_logs
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import EvictScope

from tests.doubles.notes import Notes
from tests.faults_host.stores import (
    artifact,
    check_is_right,
    check_limit,
    entries_on_disk,
    folder_of,
    store,
)

SIZE_BYTES = 4 << 20
MANY = [artifact(tag, 300_000) for tag in range(30)]


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Leave no byte free."""
    filler = directory.parent / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 65536)  # Or a part of it, if there is no room for more.
    assert shutil.disk_usage(directory.parent).free == 0
    yield
    filler.unlink()


async def no_byte_free(directory: Path) -> None:
    """Somebody else fills the disk; then a daemon starts there."""
    async with store(directory, Notes()) as tier:
        for one in MANY[:4]:
            await tier.put(one)
        with filled(directory):
            with suppress(TierUnavailable):
                await tier.put(MANY[5])
            assert all([await check_is_right(tier, one) for one in MANY[:4]])
            # What is evicted is gone, whether or not the index can be written.
            await tier.evict(EvictScope(module_sha256=MANY[1].module_sha256))
            assert await tier.get(MANY[1].key) is None
        await tier.put(MANY[1])
        assert await check_is_right(tier, MANY[1])
    with filled(directory):
        async with store(directory, Notes()) as tier:
            assert all([await check_is_right(tier, one) for one in MANY[:4]])
            with suppress(TierUnavailable):
                await tier.put(MANY[6])
            assert await tier.evict(EvictScope())
            assert entries_on_disk(directory) == {}
    with filled(directory):
        async with store(directory, Notes()) as tier:
            assert await tier.get(MANY[0].key) is None
            with suppress(TierUnavailable):
                await tier.put(MANY[0])
    async with store(directory, Notes()) as tier:
        await tier.put(MANY[0])
        assert await check_is_right(tier, MANY[0])
        await check_limit(directory, 1 << 30)


async def read_only(directory: Path) -> None:
    """What is there is served, but no write and no removal works."""
    mounted, notes = str(directory.parent), Notes()
    async with store(directory) as tier:
        for one in MANY[:3]:
            await tier.put(one)
    path = folder_of(directory, MANY[2]) / "artifact"
    path.write_bytes(b"!" + path.read_bytes()[1:])
    mount("-o", "remount,ro", mounted)
    with capture_logs() as logged:
        async with store(directory, notes) as tier:
            for _ in range(3):
                assert all([await check_is_right(tier, one) for one in MANY[:2]])
                assert await tier.get(MANY[2].key) is None
                await refused(tier.put(MANY[5]))
                await refused(tier.evict(EvictScope(module_sha256=MANY[0].module_sha256)))
            await tier.write_engines()
            assert set(notes.rejected) == {"digest"}
    assert sum("write the host store" in line["event"] for line in logged) == 1
    mount("-o", "remount,rw", mounted)
    async with store(directory) as tier:
        assert await tier.get(MANY[2].key) is None
        await tier.put(MANY[2])
        assert all([await check_is_right(tier, one) for one in MANY[:3]])


async def refused(doing: Awaitable[object]) -> None:
    try:
        await doing
    except TierUnavailable:
        return
    raise AssertionError("it was not refused")


def main() -> None:
    program, folder = sys.argv[1:]
    mount("-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", folder)
    programs = {"no_byte_free": no_byte_free, "read_only": read_only}
    asyncio.run(programs[program](Path(folder) / "store"))


if __name__ == "__main__":
    main()
