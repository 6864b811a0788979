"""What a namespace does by itself: it looks after its pins, and saves its uses."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from wasmkilnd import tenants
from wasmkilnd.tenants import OpenTenant


class Part:
    """Stands for each part of a namespace; notes looks and saves in order."""

    def __init__(self, defect: Exception | None = None) -> None:
        self.done: list[str] = []
        self._defect = defect
        self._change = asyncio.Event()

    async def read(self) -> None:
        return None

    async def start(self) -> None:
        return None

    async def look(self) -> None:
        self.done.append("look")
        if self._defect:
            raise self._defect

    async def save(self, *, last: bool = False) -> None:
        self.done.append("last save" if last else "save")
        self._change.set()

    async def flush(self, timeout_s: float) -> None:
        return None

    async def close(self) -> None:
        return None

    async def until_saved(self, times: int) -> None:
        async with asyncio.timeout(20):
            while self.done.count("save") < times:
                self._change.clear()
                await self._change.wait()


async def started(part: Part) -> OpenTenant:
    opened = OpenTenant.__new__(OpenTenant)
    tenant = SimpleNamespace(pins=part)
    vars(opened).update(dict.fromkeys(("host", "cache", "fleet", "usage"), part), tenant=tenant)
    vars(opened).update(redis=None, wake=asyncio.Event(), looking=None)
    await opened.start()
    return opened


async def test_pins_and_uses_are_looked_after_again_and_again_and_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part()
    opened = await started(part)
    await part.until_saved(1)
    opened.wake.set()
    await part.until_saved(2)
    monkeypatch.setattr(tenants, "LOOK_EVERY_S", 0.001)
    opened.wake.set()
    await part.until_saved(9)
    await opened.close()
    looks = part.done.count("look")
    assert looks >= 9
    await asyncio.sleep(0.01)
    assert part.done.count("look") == looks


async def test_the_last_save_is_the_last() -> None:
    part = Part()
    opened = await started(part)
    await part.until_saved(1)
    await opened.flush(1.0)
    opened.wake.set()
    await asyncio.sleep(0.01)
    assert part.done == ["look", "save", "last save"]
    await opened.close()


async def test_a_defect_ends_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "LOOK_EVERY_S", 0.001)
    part = Part(RuntimeError("a defect"))
    with capture_logs() as logs:
        opened = await started(part)
        await part.until_saved(3)
        await opened.close()
    assert {line["event"] for line in logs} == {
        "a defect keeps pins or uses from being looked after"
    }
