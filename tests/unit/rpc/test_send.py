"""Callers that read, callers that do not, and a budget that holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from wasmkilnd import wire
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Artifact
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow import send
from wasmkilnd.rpc.flow.send import Sender

from tests.contract.values import artifact, payload_of
from tests.unit.rpc.limits import limits

KIB, MIB = 1024, 1024 * 1024
HEADER = b"\x0a\x00"


class Caller:
    """One end of a call: takes what is written when it reads, as gRPC's flow control does."""

    def __init__(self, name: str, reads: bool = True, takes_refusals: bool = True) -> None:
        self.name = name
        self.got: list[bytes] = []
        self.refusal: WasmkilnError | None = None
        self.takes_refusals = takes_refusals
        self.reads = asyncio.Event()
        if reads:
            self.reads.set()

    async def write(self, message: bytes) -> None:
        if message == HEADER:
            return  # gRPC's first window takes it.
        await self.reads.wait()
        self.got.append(message)

    def peer(self) -> str:
        return f"peer of {self.name}"


class Rig:
    def __init__(self, unread: int = 8 * MIB, pinned: int = 100 * MIB, timeout: float = 60) -> None:
        self.closed: list[str] = []
        self.artifacts: dict[bytes, Artifact] = {}
        self.memory: set[bytes] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.last_messages: dict[str, list[asyncio.Task[Any]]] = {}
        self.limits = Reloadable(
            limits(send_bytes=unread, send_pinned_bytes=pinned, caller_timeout_s=timeout)
        )
        self.sender = Sender(self.limits, self._abort, self._close, self._in_memory)

    async def _abort(self, context: Any, failure: WasmkilnError) -> None:
        if not context.takes_refusals:
            await asyncio.Future()
        context.refusal = failure
        raise RuntimeError("aborted")  # as grpcio's AbortError

    async def _close(self, peer: str) -> None:
        self.closed.append(peer)
        for task in self.last_messages.get(peer, ()):
            task.cancel()  # As gRPC ends a call whose connection is closed.

    def send(self, caller: Caller, payload: bytes) -> asyncio.Task[None]:
        """Send an artifact: equal payloads are the same artifact."""
        if payload not in self.artifacts:
            self.artifacts[payload] = replace(
                artifact(), size_bytes=len(payload), frames=wire.to_frames(payload)
            )
        task = asyncio.create_task(self._call(caller, self.artifacts[payload]))
        self.tasks.append(task)
        return task

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.check_that_all_is_free()

    def check_that_all_is_free(self) -> None:
        assert self.sender.unread_bytes == self.sender.pinned_bytes == 0

    async def _call(self, caller: Caller, one: Artifact) -> None:
        """Send it in a task of its own, and end after all that was told of its end."""
        task = asyncio.create_task(self._send(caller, one))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            await asyncio.wait([task])
            task.cancelled() or task.exception()
            await asyncio.sleep(0)

    async def _send(self, caller: Caller, one: Artifact) -> None:
        last = await self.sender.send_but_last(caller, caller.name, HEADER, one)
        # As gRPC does, with the status, in the call's task.
        task = asyncio.current_task()
        assert task
        self.last_messages.setdefault(caller.peer(), []).append(task)
        await caller.write(last)

    def _in_memory(self, one: Artifact) -> bool:
        return any(self.artifacts.get(payload) is one for payload in self.memory)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "_SWEEP_S", 0.01)
    monkeypatch.setattr(send, "_STALLED_S", 0.05)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)


async def test_who_reads_gets_everything_in_whole_frames() -> None:
    rig = Rig(unread=128 * MIB)
    caller = Caller("a")
    await rig.send(caller, bytes(3 * MIB))
    assert payload_of(caller.got) == bytes(3 * MIB)
    # The last frame in two, for what goes out with the status is small.
    assert [len(message) // KIB for message in caller.got] == [512, 512, 512, 512, 512, 448, 64]
    assert rig.sender.unread_bytes == rig.sender.pinned_bytes == 0


async def test_a_small_last_frame_is_not_cut() -> None:
    rig = Rig(unread=128 * MIB)
    caller = Caller("a")
    await rig.send(caller, bytes(MIB + 22_000))
    assert [len(message) // 1000 for message in caller.got] == [524, 524, 22]
    assert payload_of(caller.got) == bytes(MIB + 22_000)


async def test_the_last_message_counts_until_the_call_has_ended() -> None:
    rig = Rig(unread=128 * MIB)
    caller = Caller("a", reads=False)
    call = rig.send(caller, bytes(20_000))
    await eventually(lambda: rig.sender.unread_bytes)
    assert not call.done()
    assert 20_000 < rig.sender.unread_bytes < 20_010
    assert rig.sender.pinned_bytes == 20_000
    caller.reads.set()
    await call
    assert rig.sender.unread_bytes == rig.sender.pinned_bytes == 0


async def test_an_answer_of_one_message_waits_for_room_as_any_other() -> None:
    rig = Rig()
    for number in range(40):
        rig.send(Caller(f"slow {number}", reads=False), bytes(MIB))
    for _ in range(300):
        rig.send(Caller("flood", reads=False), bytes(MIB))
    await asyncio.sleep(0)
    flood = Caller("flood")
    alone = asyncio.create_task(rig.sender.send_but_last(flood, "flood", bytes(64 * KIB), None))
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert not alone.done()
    alone.cancel()
    await rig.close()


@pytest.mark.parametrize("size_bytes", [20_000, MIB])
async def test_who_does_not_take_the_last_message_loses_the_connection(size_bytes: int) -> None:
    """No refusal can follow a status. The window of gRPC takes such a message of any live peer."""
    rig = Rig(timeout=0.1)
    caller = Caller("dead", reads=False)
    call = rig.send(caller, bytes(size_bytes))
    while sum(map(len, caller.got)) < size_bytes - 64 * KIB:
        caller.reads.set()
        caller.reads.clear()
        await asyncio.sleep(0.001)
    await eventually(lambda: rig.closed)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert rig.closed == ["peer of dead"]
    assert caller.refusal is None
    rig.check_that_all_is_free()


async def test_many_who_read_nothing_stay_within_the_budget_and_hold_up_nobody() -> None:
    rig = Rig()
    slow = [Caller(f"slow {n}", reads=False) for n in range(400)]
    payload = bytes(MIB)
    calls = [rig.send(caller, payload) for caller in slow]
    await asyncio.sleep(0.01)
    assert rig.sender.unread_bytes <= 8 * MIB
    assert MIB <= rig.sender.pinned_bytes < 1.1 * MIB  # once, not 400 times
    quick_ = Caller("quick")
    async with asyncio.timeout(30):
        await rig.send(quick_, payload)
    assert payload_of(quick_.got) == payload
    assert rig.sender.unread_bytes <= 8 * MIB
    for caller in slow:
        caller.reads.set()
    await asyncio.gather(*calls, return_exceptions=True)
    whole = [payload_of(caller.got) == payload for caller in slow]
    assert whole == [caller.refusal is None for caller in slow]  # each got all, or was told
    await rig.close()


async def test_pieces_grow_smaller_as_less_is_left() -> None:
    rig = Rig(unread=64 * MIB)
    for number in range(200):
        rig.send(Caller(f"slow {number}", reads=False), bytes(MIB))
    await asyncio.sleep(0.01)
    caller = Caller("a")
    await rig.send(caller, bytes(MIB))
    assert 2 < len(caller.got) < 1 + MIB // (16 * KIB)
    assert payload_of(caller.got) == bytes(MIB)
    await rig.close()


async def test_a_caller_with_many_unread_answers_holds_up_itself() -> None:
    rig = Rig()
    for _ in range(300):
        rig.send(Caller("flood", reads=False), bytes(MIB))
    await asyncio.sleep(0.01)
    assert rig.sender.unread_bytes <= 4 * MIB
    other = Caller("other")
    await rig.send(other, bytes(MIB))
    assert payload_of(other.got) == bytes(MIB)
    # It pushed nobody out, itself included: its calls wait.
    await asyncio.sleep(0.2)
    assert rig.sender.unread_bytes > 3 * MIB
    await rig.close()


async def test_when_nothing_is_left_those_who_read_nothing_make_room() -> None:
    rig = Rig()
    slow = [Caller(f"slow {number}", reads=False) for number in range(2000)]
    for one in slow:
        rig.send(one, bytes(128 * KIB))
    await asyncio.sleep(0.01)
    caller = Caller("quick")
    async with asyncio.timeout(20):
        await rig.send(caller, bytes(MIB))
    ended = [one for one in slow if one.refusal]
    assert 0 < len(ended) < len(slow)
    assert ended[0].refusal is not None
    assert ended[0].refusal.reason is Reason.COMPILE_QUEUE_FULL
    assert ended[0].refusal.metadata["limit"] == "send"
    await rig.close()


async def test_when_nothing_is_left_those_who_leave_last_messages_unread_are_cut_off() -> None:
    rig = Rig()
    slow = [Caller(f"slow {number}", reads=False) for number in range(2000)]
    for one in slow:
        rig.send(one, bytes(16 * KIB))
    caller = Caller("quick")
    async with asyncio.timeout(20):
        await rig.send(caller, bytes(MIB))
    assert payload_of(caller.got) == bytes(MIB)
    assert 0 < len(rig.closed) < len(slow)
    await rig.close()


async def test_who_takes_nothing_for_too_long_is_told() -> None:
    rig = Rig(timeout=0.1)
    caller = Caller("slow", reads=False)
    with pytest.raises(WasmkilnError) as failure:
        await rig.send(caller, bytes(MIB))
    assert caller.refusal is failure.value
    assert "did not read its answer for 0.1 s" in failure.value.message
    assert failure.value.retry_after_s
    assert rig.closed == []
    assert rig.sender.unread_bytes == rig.sender.pinned_bytes == 0


async def test_who_does_not_take_even_that_loses_the_connection() -> None:
    rig = Rig(timeout=0.1)
    caller = Caller("dead", reads=False, takes_refusals=False)
    call = rig.send(caller, bytes(MIB))
    await eventually(lambda: rig.closed)
    with pytest.raises(WasmkilnError):
        await call
    assert rig.closed == ["peer of dead"]
    assert rig.sender.unread_bytes == 0


async def test_who_reads_slowly_but_reads_is_left_alone() -> None:
    rig = Rig(timeout=0.3)
    caller = Caller("slow", reads=False)
    call = rig.send(caller, bytes(2 * MIB))
    while not call.done():
        caller.reads.set()
        await asyncio.sleep(0)
        caller.reads.clear()
        await asyncio.sleep(0.02)
    await call
    assert payload_of(caller.got) == bytes(2 * MIB)


async def test_who_hangs_up_frees_what_it_held() -> None:
    rig = Rig()
    call = rig.send(Caller("a", reads=False), bytes(MIB))
    await asyncio.sleep(0.01)
    assert rig.sender.unread_bytes
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert rig.sender.unread_bytes == rig.sender.pinned_bytes == 0


async def test_artifacts_that_nobody_reads_make_room_for_others() -> None:
    rig = Rig(unread=128 * MIB, pinned=3 * MIB)
    slow = [Caller(f"slow {number}", reads=False) for number in range(3)]
    for number, caller in enumerate(slow):
        rig.send(caller, bytes([number]) * MIB)
    await asyncio.sleep(0.01)
    assert rig.sender.pinned_bytes <= 3 * MIB
    caller = Caller("quick")
    async with asyncio.timeout(20):
        await rig.send(caller, b"x" * MIB)
    assert payload_of(caller.got) == b"x" * MIB
    assert any(one.refusal for one in slow)
    await rig.close()


async def test_who_keeps_others_out_and_takes_no_refusal_loses_the_connection() -> None:
    rig = Rig(unread=128 * MIB, pinned=3 * MIB)
    dead = Caller("dead", reads=False, takes_refusals=False)
    rig.send(dead, bytes(2 * MIB))
    caller = Caller("quick")
    async with asyncio.timeout(20):
        await rig.send(caller, b"x" * MIB)
    assert payload_of(caller.got) == b"x" * MIB
    assert rig.closed == ["peer of dead"]
    await rig.close()


async def trickle(caller: Caller, pause_s: float) -> None:
    """Take a message now and then: never stalled, and never done."""
    while True:
        caller.reads.set()
        caller.reads.clear()
        await asyncio.sleep(pause_s)


async def test_slow_readers_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # So long a busy machine may take for the small answers, and between two reads of a slow one.
    monkeypatch.setattr(send, "_STALLED_S", 5.0)
    rig = Rig(pinned=40 * MIB)
    trickling = [Caller(f"trickle {number}", reads=False) for number in range(3)]
    reading = [asyncio.create_task(trickle(caller, 0.9)) for caller in trickling]
    for number, caller in enumerate(trickling):
        rig.send(caller, bytes([number]) * 12 * MIB)
    # The third would leave less than it holds.
    await eventually(lambda: rig.sender.pinned_bytes == 24 * MIB)
    small, larger, held = Caller("small"), Caller("larger"), Caller("held")
    rig.memory.add(b"held" * 5 * MIB)
    async with asyncio.timeout(60):
        await rig.send(small, b"small" * MIB)
        await rig.send(held, b"held" * 5 * MIB)
        assert not any(one.refusal for one in trickling)
        await rig.send(larger, b"large" * 2 * MIB)
    for caller, payload in ((small, b"small"), (held, b"held" * 5), (larger, b"large" * 2)):
        assert payload_of(caller.got) == payload * MIB
    ended = next(one.refusal for one in trickling if one.refusal)
    assert ended.metadata["limit"] == "send"
    assert ended.retry_after_s
    for task in reading:
        task.cancel()
    await rig.close()


async def test_other_limits_are_in_force_at_once() -> None:
    rig = Rig(unread=8 * MIB, pinned=100 * MIB)
    slow = Caller("slow", reads=False)
    for _ in range(300):
        rig.send(slow, bytes(MIB))
    await asyncio.sleep(0.01)
    before = rig.sender.unread_bytes
    rig.limits.current = limits(send_bytes=16 * MIB)
    await eventually(lambda: rig.sender.unread_bytes > before)
    rig.limits.current = limits(caller_timeout_s=0.05)
    await eventually(lambda: slow.refusal)
    assert slow.refusal
    assert "did not read its answer for 0.05 s" in slow.refusal.message
    await rig.close()
