"""Files that change are noticed, once, and when they stay as they are."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkilnd.lifecycle.reload import (
    Stamps,
    follow,
    stamps_of,
)

LOOK_S = 0.01


@asynccontextmanager
async def following(
    files: Callable[[], Iterable[Path]], seen: Stamps, changed: Callable[[], Awaitable[bool]]
) -> AsyncIterator[None]:
    task = asyncio.create_task(follow(files, seen, changed, LOOK_S))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)


async def test_files_that_still_change_are_left_alone(tmp_path: Path) -> None:
    """A certificate and its key are not replaced in one moment."""
    file = tmp_path / "file"
    file.write_text("0")
    looks = itertools.count(2)

    def growing() -> tuple[Path, ...]:
        if (size := next(looks)) < 7:
            file.write_text("0" * size)
        return (file,)

    found: list[str] = []
    noticed = asyncio.Event()

    async def changed() -> bool:
        found.append(file.read_text())
        noticed.set()
        return True

    async with following(growing, stamps_of([file]), changed):
        await asyncio.wait_for(noticed.wait(), 30)
    assert found == ["0" * 6]


@pytest.mark.parametrize("failing", ["files", "changed", "nothing"])
async def test_whatever_fails_is_tried_again(tmp_path: Path, failing: str) -> None:
    """Also what could not be used, as a file that revokes a token where no descriptor was left."""
    file = tmp_path / "file"
    left = 3
    noticed = asyncio.Event()

    def fail(what: str) -> bool:
        nonlocal left
        fails = what == failing and left > 0
        left -= fails
        if fails and what != "nothing":
            raise RuntimeError("a defect")
        return fails

    def files() -> list[Path]:
        fail("files")
        return [file]

    async def changed() -> bool:
        fail("changed")
        assert not noticed.is_set(), "it was read again"
        if not fail("nothing"):
            noticed.set()
        return noticed.is_set()

    seen = stamps_of([file])
    file.write_text("new")
    with capture_logs() as log:
        async with following(files, seen, changed):
            await asyncio.wait_for(noticed.wait(), 30)
            await asyncio.sleep(10 * LOOK_S)
    assert left == 0
    defects = {"a defect keeps changed files from being read"}
    assert {line["event"] for line in log} == (set() if failing == "nothing" else defects)


def test_a_path_that_no_file_can_have_is_a_file_that_is_not_there() -> None:
    assert stamps_of([Path("a\0b")]) == stamps_of([Path("a\0b")])
