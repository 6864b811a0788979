"""Files that change are noticed, once, and when they stay as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wasmkilnd.lifecycle.watch import follow, stamps_of

LOOK_S = 0.01


class Looks:
    """A list of files that counts how often it is looked through."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.count = 0

    def __call__(self) -> tuple[Path, ...]:
        self.count += 1
        return self.files

    async def some(self) -> None:
        """Wait until the files were looked through a few times more."""
        wanted = self.count + 4
        async with asyncio.timeout(30):
            while self.count < wanted:  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def followed(looks: Looks) -> AsyncIterator[list[str]]:
    """Follow the first file; yield what it held each time that a change was noticed."""
    noticed: list[str] = []

    async def changed() -> None:
        noticed.append(looks.files[0].read_text() if looks.files[0].exists() else "")

    task = asyncio.create_task(follow(looks, stamps_of(looks.files), changed, LOOK_S))
    try:
        yield noticed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_is_noticed_once(tmp_path: Path) -> None:
    looks = Looks(tmp_path / "file")
    async with followed(looks) as noticed:
        await looks.some()
        assert noticed == []
        looks.files[0].write_text("made")
        await looks.some()
        assert noticed == ["made"]
        looks.files[0].write_text("changed")
        await looks.some()
        assert noticed == ["made", "changed"]
        looks.files[0].unlink()
        await looks.some()
        assert noticed == ["made", "changed", ""]


async def test_files_that_still_change_are_left_alone(tmp_path: Path) -> None:
    """A certificate and its key are not replaced in one moment."""
    file = tmp_path / "file"
    file.write_text("0")

    def growing() -> tuple[Path, ...]:
        if looks.count < 5:
            file.write_text("0" * (looks.count + 2))
        looks.count += 1
        return (file,)

    looks = Looks(file)
    found: list[str] = []
    noticed = asyncio.Event()

    async def changed() -> None:
        found.append(file.read_text())
        noticed.set()

    task = asyncio.create_task(follow(growing, stamps_of([file]), changed, LOOK_S))
    await asyncio.wait_for(noticed.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert found == ["0" * 6]
