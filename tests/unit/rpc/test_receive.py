"""Requests that arrive at once, slowly, or never, and a budget that holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow import receive
from wasmkilnd.rpc.flow.receive import Receiver

from tests.unit.rpc.limits import limits

MESSAGE = 1000


class Caller:
    """One end of a call: what it sends arrives when it says so."""

    def __init__(self, message: bytes = b"x") -> None:
        self.arrived = asyncio.Event()
        self.message = message

    async def read(self) -> Any:
        await self.arrived.wait()
        return self.message or aio.EOF


def arriving(message: bytes = b"x") -> Caller:
    caller = Caller(message)
    caller.arrived.set()
    return caller


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_QUICK_S", 0.02)


def receiving(limit_bytes: int, timeout_s: float = 60) -> Receiver:
    return Receiver(
        Reloadable(limits(receive_bytes=limit_bytes, caller_timeout_s=timeout_s)), MESSAGE
    )


def read(receiver: Receiver, caller: Caller, name: str, patient: bool = False) -> asyncio.Task[Any]:
    return asyncio.create_task(receiver.read(caller, name, patient=patient))


async def test_what_arrives_at_once_is_held_until_it_is_released() -> None:
    receiver = receiving(8 * MESSAGE)
    message, release = await receiver.read(arriving(b"hello"), "a")
    assert message == b"hello"
    assert receiver.held_bytes == 5
    release()
    release()
    assert receiver.held_bytes == 0
    assert (await receiver.read(arriving(b""), "a"))[0] is None


async def test_what_arrives_slowly_counts_in_full_until_it_is_there() -> None:
    receiver = receiving(8 * MESSAGE)
    caller = Caller()
    call = read(receiver, caller, "a")
    await asyncio.sleep(0)
    assert receiver.held_bytes == 0
    await asyncio.sleep(0.1)
    assert receiver.held_bytes == MESSAGE
    caller.arrived.set()
    message, release = await call
    assert receiver.held_bytes == len(message)
    release()


async def test_a_caller_that_sends_nothing_is_refused_in_the_end() -> None:
    receiver = receiving(8 * MESSAGE, 0.2)
    with pytest.raises(WasmkilnError) as failure:
        await receiver.read(Caller(), "a")
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.value.metadata["limit"] == "receive"
    assert "did not arrive within 0.2 s" in failure.value.message
    assert receiver.held_bytes == 0


async def test_a_stream_that_may_be_silent_stays() -> None:
    receiver = receiving(8 * MESSAGE, 0.05)
    caller = Caller()
    call = read(receiver, caller, "a", patient=True)
    await asyncio.sleep(0.3)
    assert not call.done()
    caller.arrived.set()
    assert (await call)[0] == b"x"


async def test_slow_ones_beyond_the_budget_are_refused_and_quick_ones_never_wait() -> None:
    receiver = receiving(8 * MESSAGE)  # room for four
    slow = [Caller() for _ in range(10)]
    calls = [read(receiver, caller, f"slow {n}") for n, caller in enumerate(slow)]
    await asyncio.sleep(0.2)
    refused = [call for call in calls if call.done()]
    assert len(refused) == 6
    for call in refused:
        with pytest.raises(WasmkilnError) as failure:
            await call
        assert failure.value.metadata["limit"] == "receive"
        assert failure.value.retry_after_s
    assert receiver.held_bytes == 4 * MESSAGE
    for _ in range(100):
        _, release = await receiver.read(arriving(), "quick")
        release()
    for caller in slow:
        caller.arrived.set()
    for call in calls:
        if call not in refused:
            (await call)[1]()
    assert receiver.held_bytes == 0


async def test_a_caller_with_many_slow_ones_makes_room_for_another() -> None:
    receiver = receiving(8 * MESSAGE)
    flood = [read(receiver, Caller(), "flood") for _ in range(10)]
    await asyncio.sleep(0.1)
    # No more than it leaves to others.
    assert sum(not call.done() for call in flood) == 2
    others = [read(receiver, Caller(), f"other {number}") for number in range(3)]
    await asyncio.sleep(0.1)
    assert sum(not call.done() for call in flood) == 1
    assert not any(call.done() for call in others)
    for call in (*flood, *others):
        call.cancel()
    await asyncio.gather(*flood, *others, return_exceptions=True)
    assert receiver.held_bytes == 0


async def test_a_silent_stream_makes_room_first() -> None:
    receiver = receiving(4 * MESSAGE)  # room for two
    silent = read(receiver, Caller(), "silent", patient=True)
    slow = read(receiver, Caller(), "slow")
    await asyncio.sleep(0.1)
    other = read(receiver, Caller(), "other")
    await asyncio.sleep(0.1)
    assert (silent.done(), slow.done(), other.done()) == (True, False, False)
    for call in (slow, other):
        call.cancel()
    await asyncio.gather(silent, slow, other, return_exceptions=True)


async def test_while_too_much_is_looked_at_a_caller_that_holds_much_of_it_waits() -> None:
    receiver = receiving(8 * MESSAGE)
    held = [(await receiver.read(arriving(bytes(MESSAGE)), "flood"))[1] for _ in range(2)]
    waiting = read(receiver, arriving(bytes(MESSAGE)), "flood")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    _, release = await receiver.read(arriving(), "other")
    release()
    held.pop()()
    _, release = await waiting
    for each in (release, *held):
        each()
    assert receiver.held_bytes == 0


async def test_who_hangs_up_while_it_waits_leaves_no_trace() -> None:
    receiver = receiving(4 * MESSAGE)
    _, release = await receiver.read(arriving(bytes(MESSAGE)), "a")
    waiting = [read(receiver, arriving(), "a") for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    release()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [call.cancelled() for call in waiting] == [True, False, False]


async def test_other_limits_are_in_force_at_once() -> None:
    in_force = Reloadable(limits(receive_bytes=2 * MESSAGE))
    receiver = Receiver(in_force, MESSAGE)
    _, release = await receiver.read(arriving(b"x" * MESSAGE), "a")
    call = read(receiver, Caller(), "b")
    await asyncio.sleep(0)
    assert not receiver._reads  # It waits for room.
    in_force.current = limits(receive_bytes=8 * MESSAGE, caller_timeout_s=0.05)
    other = read(receiver, Caller(), "c")
    with pytest.raises(WasmkilnError, match=r"did not arrive within 0.05 s"):
        await other
    release()
    with pytest.raises(WasmkilnError, match=r"did not arrive within 0.05 s"):
        await call


async def test_what_is_built_of_a_request_counts_beside_its_bytes() -> None:
    receiver = receiving(8 * MESSAGE)
    message, release = await receiver.read(arriving(bytes(MESSAGE)), "a")
    assert message
    built = receiver.hold("a", 2 * MESSAGE)
    assert receiver.held_bytes == 3 * MESSAGE
    waiting = read(receiver, arriving(), "a")
    await asyncio.sleep(0.05)
    assert not waiting.done()  # One caller holds no more than it leaves to others.
    built()
    built()
    await waiting
    release()
    assert receiver.held_bytes == 1
    (await waiting)[1]()
    assert receiver.held_bytes == 0
