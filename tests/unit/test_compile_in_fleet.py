"""Compile among other daemons: what a flight asks of its claim and of the shared tier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

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
