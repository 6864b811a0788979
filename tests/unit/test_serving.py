"""Names move to a new engine once, and back to none, whatever happens while engines start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from wasmkilnd.engines.install import InstalledEngine
from wasmkilnd.engines.names import DEFAULT, NameChoices, NameRecord, WarmOrder, name_of
from wasmkilnd.lifecycle import engines
from wasmkilnd.lifecycle.engines import FoundEngines, Serving
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.settings_loader import load
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics

from tests.unit.engines.limits import LIMITS

OLD, MIDDLE, NEW, OTHER = "wasmtime-48.0.0", "wasmtime-49.0.0", "wasmtime-50.0.1", "wasmer-1.1.0"


class Rig:
    """A Serving whose engines are names; ``meanwhile`` runs while they start."""

    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = load({"state_dir": str(state_dir)}, {}).settings
        self.serving = Serving(Reloadable(settings), Reloadable(LIMITS), Metrics("0"))
        self.record = NameRecord(state_dir)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

        async def start(new: Sequence[InstalledEngine], _: object) -> tuple[list[Any], list[Any]]:
            if self.meanwhile:
                await self.meanwhile()
            return [_served(each.id) for each in new], []

        monkeypatch.setattr(engines, "serve_engines", start)
        nobody = SimpleNamespace(write_engines=_nothing)
        self.serving._tenants = cast(Any, nobody)
        self.serving._auditor = cast(Any, SimpleNamespace(on=False, write=lambda _: None))

    async def take(self, *ids: str, warming: Sequence[str] = ()) -> None:
        installed = [
            InstalledEngine(name_of(each), each.partition("-")[2], "CPython", Path(each))
            for each in ids
        ]
        choices = NameChoices({}, "", *self.record.read())
        orders = [WarmOrder(each, OLD, 10) for each in warming]
        await self.serving._take(FoundEngines(installed, [], choices, orders))

    @property
    def stands_for(self) -> tuple[str, str]:
        """What `wasmtime` means now, and what it will after a restart."""
        return self.serving.registry.names["wasmtime"], self.record.read()[0]["wasmtime"]


def _served(engine_id: str) -> Any:
    identity = SimpleNamespace(id=engine_id, version=engine_id.partition("-")[2])
    return SimpleNamespace(
        id=engine_id,
        name=name_of(engine_id),
        has_fast=True,
        pool=SimpleNamespace(usage=EngineUsage),
        compilers=frozenset(),
        capabilities=SimpleNamespace(identity=identity, targets=()),
    )


async def _nothing() -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    one = Rig(tmp_path, monkeypatch)
    await one.take(OLD)
    await one.take(MIDDLE, OLD)
    assert one.stands_for == (OLD, OLD)
    return one


async def test_names_move_when_a_warm_up_has_ended(rig: Rig) -> None:
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    assert rig.stands_for == (OLD, OLD)
    await rig.serving._names_move(NEW)
    assert rig.stands_for == (NEW, NEW)
    assert rig.record.read()[0][DEFAULT] == NEW


async def test_an_engine_that_was_taken_out_during_its_warm_up_moves_no_name(rig: Rig) -> None:
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    await rig.take(MIDDLE, OLD)
    await rig.serving._names_move(NEW)
    assert rig.stands_for == (OLD, OLD)


async def test_a_warm_up_that_ends_while_another_engine_starts_is_not_undone(rig: Rig) -> None:
    await rig.take(NEW, MIDDLE, OLD, warming=[NEW])
    rig.meanwhile = lambda: rig.serving._names_move(NEW)
    await rig.take(NEW, MIDDLE, OLD, OTHER)
    assert rig.stands_for == (NEW, NEW)


async def test_what_an_operator_chooses_while_an_engine_starts_holds(rig: Rig) -> None:
    async def choose() -> None:
        rig.record.write({"wasmtime": MIDDLE, DEFAULT: MIDDLE})

    rig.meanwhile = choose
    await rig.take(MIDDLE, OLD, OTHER)
    assert rig.stands_for == (MIDDLE, MIDDLE)
