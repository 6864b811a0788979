"""What a namespace does by itself: it looks after its pins, and saves its uses."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest import mock
from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs
from wasmkilnd.tenants import graph
from wasmkilnd.tenants.graph import OpenTenant


async def started(pins: Any, usage: Any) -> OpenTenant:
    part = AsyncMock()
    tenant: Any = SimpleNamespace(pins=pins, quarantine=part)
    opened = OpenTenant(
        **(dict.fromkeys(("memory", "host", "cache", "fleet"), part)),
        tenant=tenant,
        usage=usage,
        redis=None,
        mode="none",
        metrics=part,
    )
    await opened.start()
    return opened


async def until(done: AsyncMock, calls: int) -> None:
    async with asyncio.timeout(20):
        while done.await_count < calls:  # noqa: ASYNC110 - a mock tells nobody
            await asyncio.sleep(0.001)


async def test_pins_and_uses_are_looked_after_again_and_again_and_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pins, usage = AsyncMock(), AsyncMock()
    opened = await started(pins, usage)
    await until(usage.save, 1)
    opened.look_soon()
    await until(usage.save, 2)
    monkeypatch.setattr(graph, "LOOK_EVERY_S", 0.001)
    opened.look_soon()
    await until(usage.save, 9)
    await opened.close()
    looks = pins.look.await_count
    assert looks >= 9
    await asyncio.sleep(0.01)
    assert pins.look.await_count == looks


async def test_the_last_save_is_the_last() -> None:
    pins, usage = AsyncMock(), AsyncMock()
    opened = await started(pins, usage)
    await until(usage.save, 1)
    await opened.flush(1.0)
    opened.look_soon()
    await asyncio.sleep(0.01)
    assert usage.save.await_args_list == [mock.call(), mock.call(last=True)]
    await opened.close()


async def test_a_defect_ends_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "LOOK_EVERY_S", 0.001)
    pins, usage = AsyncMock(), AsyncMock()
    pins.look.side_effect = RuntimeError("a defect")
    with capture_logs() as logs:
        opened = await started(pins, usage)
        await until(usage.save, 3)
        await opened.close()
    assert {line["event"] for line in logs} == {
        "a defect keeps pins or uses from being looked after"
    }
