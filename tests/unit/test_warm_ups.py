"""A warm-up ends, whatever does not come back: names must not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from wasmkilnd import errors
from wasmkilnd.engines.install.warm_orders import WarmOrder, WarmOrders
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.lifecycle.warm_ups import WarmUps
from wasmkilnd.tenants.tenants import Tenants
from wasmkilnd.uses import UsedSpec, Uses

OLD, NEW = "wasmtime-49.0.0", "wasmtime-50.0.1"
MODULE = "a" * 64


class Dead:
    """A namespace whose shared tier does not answer, and whose module only that tier had."""

    def __init__(self) -> None:
        self.asked = 0
        self.usage = self.tenant = self.service = self.behind = self.shared = self

    async def of_fleet(self) -> Uses:
        raise TierUnavailable("it is gone")

    def own(self) -> Uses:
        use = (MODULE, UsedSpec(OLD, "x86_64-unknown-linux-gnu", "baseline", ()))
        return Uses({use: 1.0})

    async def make(self, request: object) -> None:
        self.asked += 1
        raise errors.module_not_loaded(MODULE)

    def status(self) -> object:
        return SimpleNamespace(up=False, detail="it is gone")


@pytest.mark.parametrize("patience_s", [0.0, 0.01])
async def test_a_server_that_is_gone_for_good_does_not_keep_names_back(
    tmp_path: Path, patience_s: float
) -> None:
    moved, tasks, dead = list[str](), list[asyncio.Task[None]](), Dead()

    async def names_move(engine_id: str) -> None:
        moved.append(engine_id)

    def in_background(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    orders, order = WarmOrders(tmp_path), WarmOrder(NEW, OLD, 10)
    orders.write(order)
    tenants = cast(Tenants, SimpleNamespace(opened={"": dead}))
    warm_ups = WarmUps(orders, tenants, 1, names_move, in_background, patience_s)
    warm_ups.begin([order])
    await asyncio.gather(*tasks)
    (status,) = warm_ups.status
    assert (status.ended, status.total, status.failed, dead.asked) == (True, 1, 1, 1)
    assert moved == [NEW]
    assert orders.read([NEW]) == []
