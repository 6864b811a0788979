"""Which engines serve, and what names stand for, whatever happens while engines start.

Names move to a new engine once, and back to none. A warm-up ends, whatever does not come back:
names must not wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from wasmkilnd import errors
from wasmkilnd.engines.install import InstalledEngine
from wasmkilnd.engines.names import DEFAULT, NameRecord, WarmOrder, name_of
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.lifecycle import warm_ups
from wasmkilnd.lifecycle.engines import Serving
from wasmkilnd.model import Reloadable
from wasmkilnd.settings_loader import load
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics
from wasmkilnd.usage import UsedSpec, Uses

from tests.doubles.until import until
from tests.unit.engines.limits import LIMITS

OLD, MIDDLE, NEW, OTHER = "wasmtime-48.0.0", "wasmtime-49.0.0", "wasmtime-50.0.1", "wasmer-1.1.0"
MODULE = "a" * 64


class Rig:
    """A Serving whose engines are names; ``meanwhile`` runs while they start."""

    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = load({"state_dir": str(state_dir)}, {}).settings
        self.tasks: list[asyncio.Task[None]] = []
        self.serving = Serving(
            Reloadable(settings),
            Reloadable(LIMITS),
            Metrics("0"),
            cast(Any, SimpleNamespace(on=False, write=lambda _: None)),
            lambda work: self.tasks.append(asyncio.create_task(work)),
        )
        self.record = NameRecord(state_dir)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

        async def start(new: InstalledEngine, *_: object) -> Any:
            if self.meanwhile:
                await self.meanwhile()
            return self._served(new.id)

        monkeypatch.setattr("wasmkilnd.engines.serving.serve_engine", start)
        self.serving.follow(cast(Any, SimpleNamespace(write_engines=_nothing)))

    def _served(self, engine_id: str) -> Any:
        async def close() -> None:
            """It has no workers."""

        identity = SimpleNamespace(id=engine_id, version=engine_id.partition("-")[2])
        return SimpleNamespace(
            id=engine_id,
            name=name_of(engine_id),
            has_fast=True,
            pool=SimpleNamespace(close=close, usage=EngineUsage),
            compilers=frozenset(),
            capabilities=SimpleNamespace(identity=identity, targets=(), compared=()),
        )

    def _order(self, order: WarmOrder) -> None:
        self.record.change(lambda record: record.ordered(order.engine_id, order))

    async def take(self, *ids: str, warming: Sequence[str] = ()) -> None:
        installed = [
            InstalledEngine(name_of(each), each.partition("-")[2], "CPython", Path(each))
            for each in ids
        ]
        for each in warming:
            self._order(WarmOrder(each, OLD, 10))
        await self.serving._take(installed)

    @property
    def stands_for(self) -> tuple[str, str]:
        """What `wasmtime` means now, and what it will after a restart."""
        return self.serving.registry.names["wasmtime"], self.record.read().names["wasmtime"]


async def _nothing() -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    one = Rig(tmp_path, monkeypatch)
    await one.take(OLD)
    await one.take(MIDDLE, OLD)
    assert one.stands_for == (OLD, OLD)
    return one


async def test_an_engine_that_was_taken_out_during_its_warm_up_moves_no_name(rig: Rig) -> None:
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    await rig.take(MIDDLE, OLD)
    await rig.serving._resolve(warmed=NEW)
    assert rig.stands_for == (OLD, OLD)


async def test_a_warm_up_that_ends_while_another_engine_starts_is_not_undone(rig: Rig) -> None:
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    rig.meanwhile = lambda: rig.serving._resolve(warmed=NEW)
    await rig.take(NEW, MIDDLE, OLD, OTHER)
    assert rig.stands_for == (NEW, NEW)


async def test_a_warm_up_that_ends_as_an_engine_is_taken_out_ends_all_the_same(rig: Rig) -> None:
    """Names are resolved for what still serves, whatever is installed by then."""
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    async with rig.serving._naming:
        taking = asyncio.create_task(rig.take(NEW, OLD))
        warmed = asyncio.create_task(rig.serving._resolve(warmed=NEW))
        await until(lambda: rig.serving._ids == [NEW, OLD])
    await asyncio.gather(warmed, taking)
    assert rig.stands_for == (NEW, NEW)
    assert [each.id for each in rig.serving.registry.served] == [NEW, OLD]


async def test_what_an_operator_chooses_while_an_engine_starts_holds(rig: Rig) -> None:
    async def choose() -> None:
        names = {"wasmtime": MIDDLE, DEFAULT: MIDDLE}
        rig.record.change(lambda record: replace(record, names=names))

    rig.meanwhile = choose
    await rig.take(MIDDLE, OLD, OTHER)
    assert rig.stands_for == (MIDDLE, MIDDLE)


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

    def shared(self) -> list[object]:
        return [
            SimpleNamespace(up=False, switched_off=False),
            SimpleNamespace(up=False, switched_off=True),
        ]


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


async def warm(rig: Rig, site: Dead) -> Any:
    """Have an engine warmed; return how that ended."""
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    assert rig.stands_for == (OLD, OLD)
    rig.serving.follow(cast(Any, SimpleNamespace(opened={"": site}, write_engines=_nothing)))
    await asyncio.gather(*rig.tasks)
    assert rig.record.read().warm_ups == []
    assert rig.stands_for == (NEW, NEW)
    (status,) = rig.serving._warm_ups.values()
    return status


async def test_a_defect_at_one_artifact_does_not_stop_the_others(rig: Rig) -> None:
    site = Defective()
    status = await warm(rig, site)
    assert (status.total, status.done, status.failed, status.ended) == (2, 1, 1, True)
    assert site.asked == 2


@pytest.mark.parametrize(("patience_s", "asked"), [(0.0, 1), (0.01, 2)])
async def test_a_server_that_is_gone_for_good_does_not_keep_names_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, patience_s: float, asked: int
) -> None:
    monkeypatch.setattr(warm_ups, "_PATIENCE_S", patience_s)
    site = Dead()
    status = await warm(rig, site)
    assert (status.ended, status.total, status.failed, site.asked) == (True, 1, 1, asked)
