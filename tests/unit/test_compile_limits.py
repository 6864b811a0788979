"""What Compile and Load refuse for want of room, and what waiting calls hold."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd import errors
from wasmkilnd.compile import Request, Terms
from wasmkilnd.errors import Reason
from wasmkilnd.flights import Waiter

from tests.unit.services import (
    CORE,
    A,
    Rig,
    refused,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def sized(number: int, size_bytes: int = 60) -> bytes:
    """Return a module that differs from all others."""
    return CORE + number.to_bytes(size_bytes - len(CORE), "big")


async def working(rig: Rig, compiles: int, validating: int) -> None:
    """Return once the engines do so much."""
    async with asyncio.timeout(60):
        while (rig.engines.compiles, rig.engines.validating) != (compiles, validating):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_modules_of_all_work_under_way_have_one_limit(rig: Rig) -> None:
    """A flight holds its module whatever it waits for: the limit is twice that of a queue."""
    rig.engines.release.clear()
    b = Terms(Waiter("b"))
    calls = [
        asyncio.create_task(rig.compiler.compile(Request(wasm=sized(0), terms=Terms(A)))),
        asyncio.create_task(rig.compiler.load(Request(wasm=sized(1), terms=Terms(A)))),
    ]
    await working(rig, compiles=1, validating=1)
    for call in (
        rig.compiler.compile(Request(wasm=sized(2), terms=Terms(A))),
        rig.compiler.load(Request(wasm=sized(2), terms=Terms(A))),
    ):
        failure = await refused(call)
        assert failure.reason is Reason.COMPILE_QUEUE_FULL
        assert failure.metadata["limit"] == "queue"
        assert failure.retry_after_s == 1.0
    # Who joins holds nothing, and there is room for another caller.
    calls.append(asyncio.create_task(rig.compiler.compile(Request(wasm=sized(0), terms=b))))
    calls.append(asyncio.create_task(rig.compiler.compile(Request(wasm=sized(3), terms=b))))
    await working(rig, compiles=2, validating=1)
    rig.engines.release.set()
    await asyncio.gather(*calls)
    # All is put down, whatever became of it.
    rig.engines.failure = errors.module_invalid("usual-1", "bad", 8)
    for _ in range(5):
        assert (
            await refused(rig.compiler.load(Request(wasm=sized(4))))
        ).reason is Reason.MODULE_INVALID
        order = Request(wasm=sized(4))
        assert (await refused(rig.compiler.compile(order))).reason is Reason.MODULE_INVALID


async def test_a_call_cancelled_at_any_moment_holds_nothing(rig: Rig) -> None:
    rig.engines.release.clear()
    rig.engines.keep = False
    for moment in range(10):
        call = asyncio.create_task(rig.compiler.compile(Request(wasm=sized(moment))))
        for _ in range(moment):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(0)
        await rig.compiler.flights.settle(5)
    rig.engines.release.set()
    await rig.compiler.compile(Request(wasm=sized(11)))


async def test_the_receive_budget_is_released_once_admission_counts_the_module(rig: Rig) -> None:
    rig.engines.release.clear()
    released: list[str] = []
    load = Request(wasm=sized(0), terms=Terms(A, lambda: released.append("load")))
    compile_ = Request(wasm=sized(1), terms=Terms(A, lambda: released.append("compile")))
    calls = [
        asyncio.create_task(rig.compiler.load(load)),
        asyncio.create_task(rig.compiler.compile(compile_)),
    ]
    await asyncio.sleep(0.01)
    assert sorted(released) == ["compile", "load"]
    # Not so what finds no room.
    full = Request(wasm=sized(2), terms=Terms(A, lambda: released.append("full")))
    await refused(rig.compiler.compile(full))
    assert len(released) == 2
    rig.engines.release.set()
    await asyncio.gather(*calls)
