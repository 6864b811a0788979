"""What a namespace does by itself: it looks after its pins, and saves its uses."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from wasmkilnd import tenants
from wasmkilnd.tenants import OpenTenant, Tenants


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

    async def save(self) -> None:
        self.done.append("save")
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


async def started(part: Part) -> Tenants:
    """Return the looks of one namespace."""
    opened, tenants = OpenTenant.__new__(OpenTenant), Tenants.__new__(Tenants)
    tenant, young = SimpleNamespace(pins=part), SimpleNamespace(max_age_s=0.0)
    parts = dict.fromkeys(("host", "cache", "fleet", "usage"), part)
    vars(opened).update(**parts, redis=None, tenant=tenant, _sealer=young)
    vars(tenants).update(opened={"": opened}, _wake=asyncio.Event(), host=part, sealer=young)
    vars(tenants).update(_tasks=set(), _closing=set())
    await tenants.start()
    return tenants


async def test_pins_and_uses_are_looked_after_again_and_again_and_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part()
    whole = await started(part)
    await part.until_saved(1)
    whole.look_at_pins()
    await part.until_saved(2)
    monkeypatch.setattr(tenants, "LOOK_EVERY_S", 0.001)
    whole.look_at_pins()
    await part.until_saved(9)
    await whole.close()
    looks = part.done.count("look")
    assert looks >= 9
    await asyncio.sleep(0.01)
    assert part.done.count("look") == looks


async def test_a_flush_saves_once_more() -> None:
    part = Part()
    whole = await started(part)
    await part.until_saved(1)
    await whole.flush(1.0)
    assert part.done == ["look", "save", "save"]
    await whole.close()


async def test_a_defect_ends_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "LOOK_EVERY_S", 0.001)
    part = Part(RuntimeError("a defect"))
    with capture_logs() as logs:
        whole = await started(part)
        await part.until_saved(3)
        await whole.close()
    assert {line["event"] for line in logs} == {
        "a defect keeps pins or uses from being looked after"
    }
