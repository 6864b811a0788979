"""A warm-up ends, whatever does not come back: names must not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from wasmkilnd import errors
from wasmkilnd.engines.names import WarmOrder, WarmOrders
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.lifecycle.warm_ups import WarmUps
from wasmkilnd.tenants import Tenants
from wasmkilnd.usage import UsedSpec, Uses

OLD, NEW = "wasmtime-49.0.0", "wasmtime-50.0.1"
MODULE = "a" * 64


class Dead:
    """A namespace whose shared tier does not answer, and whose module only that tier had."""

    def __init__(self) -> None:
        self.asked = 0
        self.usage = self.tenant = self.compiler = self

    async def of_fleet(self) -> Uses:
        raise TierUnavailable("it is gone")

    @property
    def own(self) -> Uses:
        use = (MODULE, UsedSpec(OLD, "x86_64-unknown-linux-gnu", "baseline", ()))
        return Uses({use: 1.0})

    async def ahead(self, request: object) -> None:
        self.asked += 1
        raise errors.module_not_loaded(MODULE)

    def remote_status(self) -> object:
        return SimpleNamespace(up=False, detail="it is gone")


class Defective(Dead):
    """A namespace with two artifacts to make, the first of which meets a defect of the daemon."""

    @property
    def own(self) -> Uses:
        spec = UsedSpec(OLD, "x86_64-unknown-linux-gnu", "baseline", ())
        return Uses({(MODULE, spec): 2.0, ("b" * 64, spec): 1.0})

    async def of_fleet(self) -> Uses:
        return self.own

    async def ahead(self, request: object) -> None:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("a defect")


async def test_a_defect_at_one_artifact_does_not_stop_the_others(tmp_path: Path) -> None:
    asked_when_names_moved, tasks, site = list[int](), list[asyncio.Task[None]](), Defective()

    async def names_move(engine_id: str) -> None:
        asked_when_names_moved.append(site.asked)

    def in_background(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    tenants = cast(Tenants, SimpleNamespace(opened={"": site}))
    warm_ups = WarmUps(WarmOrders(tmp_path), tenants, 1, names_move, in_background, 1.0)
    warm_ups.begin([WarmOrder(NEW, OLD, 10)])
    await asyncio.gather(*tasks)
    (status,) = warm_ups.status
    assert (status.total, status.done, status.failed, status.ended) == (2, 1, 1, True)
    assert asked_when_names_moved == [2]


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
