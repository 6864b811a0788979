"""Modules in files, as the event loop reads them."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from wasmkilnd import wire
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files import spooled
from wasmkilnd.files.spooled import Spooled

from tests.doubles.until import until

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def file(tmp_path: Path) -> Spooled:
    made = Spooled(tmp_path / "uploads")
    made.append(CONTENT)
    return made


@pytest.mark.parametrize("start", [0, 1, len(CONTENT) - 1, len(CONTENT)])
async def test_it_is_read_as_what_is_in_memory_is(file: Spooled, start: int) -> None:
    for wasm in (file, CONTENT):
        pieces = [bytes(each) async for each in wire.read_pieces(wasm, start)]
        assert b"".join(pieces) == CONTENT[start:]
        assert all(len(each) <= wire.CHUNK_BYTES for each in pieces)


async def test_a_disk_that_hangs_holds_up_its_reader_alone(
    file: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, read = threading.Event(), os.pread

    def hang(*args: Any) -> bytes:
        assert hangs.wait(60)
        return read(*args)

    monkeypatch.setattr(os, "pread", hang)
    reading = asyncio.create_task(file.read(0, 10))
    await asyncio.sleep(0)
    assert not reading.done()
    monkeypatch.setattr(spooled, "_READ_S", 0.01)
    with pytest.raises(WasmkilnError, match="does not answer") as failure:
        await file.read(0, 10)
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    hangs.set()
    assert await reading == CONTENT[:10]


async def test_a_disk_that_fails_is_told(file: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(WasmkilnError, match=r"from disk \(Input/output error\)"):
        await file.read(0, 10)


async def test_nothing_of_it_is_left_after_its_last_reader(tmp_path: Path) -> None:
    made = Spooled(tmp_path / "uploads")
    made.append(CONTENT)

    def is_open() -> bool:
        names = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
        return any(str(name).startswith(f"{tmp_path}/") for name in names)

    assert is_open()
    del made
    await until(lambda: not is_open())
