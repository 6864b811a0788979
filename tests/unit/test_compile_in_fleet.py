"""Compile among other daemons: what a flight asks of its claim and of the shared tier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from wasmkilnd import errors
from wasmkilnd.compile import Request
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.flights import WaitBudget
from wasmkilnd.model import (
    CacheKey,
    Origin,
)

from tests.unit.services import (
    COMPONENT,
    CORE,
    Rig,
    refused,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


class Claim:
    """A claim whose results a test decides, and whose calls it records."""

    def __init__(self, takes: Sequence[bool] = (True,), stored: Sequence[bool] = ()) -> None:
        self.takes, self.elsewhere = list(takes), list(stored)
        self.said: list[str] = []

    async def stored(self) -> None:
        await asyncio.Event().wait()

    async def take(self) -> bool:
        return self.takes.pop(0)

    async def wait_for_others(self) -> bool:
        return self.elsewhere.pop(0)

    def ignore_others(self) -> None:
        self.said.append("ignored others")

    def failed(self) -> None:
        self.said.append("failed")


def contest(rig: Rig, claim: Claim) -> None:
    """Have the fleet hand out ``claim``."""

    @asynccontextmanager
    async def claimed(
        key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        assert not alone
        yield claim
        claim.said.append("ended")

    rig.fleet.claim = claimed  # type: ignore[method-assign,assignment]


async def test_other_daemons_learn_of_a_refusal_before_it_is_explained(rig: Rig) -> None:
    claim = Claim()
    contest(rig, claim)

    async def refusal() -> WasmkilnError:
        assert claim.said == ["failed", "ended"]
        assert rig.engines.workers == 0
        claim.said.append("explained")
        return errors.module_invalid("usual-1", "bad", 8)

    rig.engines.refusal = refusal
    assert (await refused(rig.compiler.compile(Request(wasm=CORE)))).message
    assert claim.said[-1] == "explained"


async def test_an_unusable_artifact_of_another_daemon_is_compiled_here(rig: Rig) -> None:
    claim = Claim(takes=[False, True], stored=[True])
    contest(rig, claim)
    assert (await rig.compiler.compile(Request(wasm=CORE))).origin is Origin.COMPILED
    assert claim.said == ["ignored others", "ended"]


async def test_one_call_spends_one_budget_on_the_shared_tier(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WaitBudget] = []
    spent: list[tuple[str, WaitBudget]] = []

    def wait_budget() -> WaitBudget:
        made.append(WaitBudget())
        return made[-1]

    def watch(owner: object, name: str) -> None:
        genuine = getattr(owner, name)

        def watched(*asked: Any, **named: Any) -> Any:
            spent.extend((name, each) for each in asked if isinstance(each, WaitBudget))
            return genuine(*asked, **named)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(rig.cache, "wait_budget", wait_budget)
    for name in ("get", "get_module", "held"):
        watch(rig.cache, name)
    watch(rig.fleet, "claim")
    for name in ("check", "report"):
        watch(rig.quarantine, name)

    async def asked_by(call: Coroutine[Any, Any, object]) -> list[str]:
        made.clear()
        spent.clear()
        await asyncio.gather(call, return_exceptions=True)
        assert {id(budget) for _, budget in spent} == {id(budget) for budget in made}
        assert len(made) == 1
        return [name for name, _ in spent]

    sha256 = (await rig.compiler.load(Request(wasm=COMPONENT))).module.sha256
    assert await asked_by(rig.compiler.load(Request(wasm=COMPONENT))) == ["get_module", "check"]
    rig.engines.failure = errors.compile_timeout("usual-1", "compiling", 30)
    compiling = rig.compiler.compile(Request(sha256=sha256))
    looks = ["get", "get_module", "get", "claim", "check", "report"]
    assert await asked_by(compiling) == looks
    finding = rig.compiler.find_missing([Request(sha256)])
    assert await asked_by(finding) == ["held", "held"]
