"""Callers that send and read at once, slowly, or never, limits that hold, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from grpc import aio
from wasmkilnd import wire
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import ANYBODY, Artifact, Reloadable
from wasmkilnd.rpc import traffic
from wasmkilnd.rpc.calls import Entry, unary
from wasmkilnd.rpc.traffic import Call, Traffic, caller_of

from tests.contract.values import artifact, payload_of
from tests.doubles.context import Context
from tests.doubles.until import until
from tests.frames import to_frames

KIB, MIB = 1024, 1024 * 1024
MESSAGE = 1000
HEADER = b"\x0a\x00"


def limits(**changed: Any) -> Any:
    """Return settings with wide limits, but for those that are named."""
    wide = {"max_calls": 1000, "receive_bytes": 512 * MIB, "caller_timeout_s": 60}
    return SimpleNamespace(**wide | changed)


class Caller:
    """One end of a call: sends and reads when it says so, as gRPC's flow control lets it."""

    def __init__(self, message: bytes | None = None, *, reads: bool = True) -> None:
        self.message = message
        self.arrived, self.reads = asyncio.Event(), asyncio.Event()
        self.got: list[bytes] = []
        if message is not None:
            self.arrived.set()
        if reads:
            self.reads.set()

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> None:
        return None

    async def read(self) -> Any:
        await self.arrived.wait()
        return self.message or aio.EOF

    async def write(self, message: bytes) -> None:
        if message != HEADER:  # gRPC's first window takes it.
            await self.reads.wait()
            self.got.append(message)


class Rig:
    """The limits, and calls that run in tasks as those of gRPC do."""

    def __init__(self, **changed: Any) -> None:
        self.limits = Reloadable(limits(**changed))
        self.traffic = Traffic(self.limits, MESSAGE)
        self.tasks: list[asyncio.Task[Any]] = []

    def read(
        self, caller: Caller, name: str = "a", most_bytes: int = MESSAGE
    ) -> asyncio.Task[tuple[bytes | None, Call]]:
        """Read a request; the task ends with it and its call, which still holds it."""

        async def act(call: Call) -> tuple[bytes | None, Call]:
            return await self.traffic.read(call, most_bytes), call

        return self._begin(caller, name, act)

    def send(
        self, caller: Caller, one: Artifact, name: str = "a", offset_bytes: int = 0
    ) -> asyncio.Task[None]:
        """Send an artifact."""

        async def act(call: Call) -> None:
            try:
                # gRPC sends the last message with the status, in the call's task.
                await caller.write(await self.traffic.send(call, HEADER, one, offset_bytes))
            finally:
                self.traffic.end(call)

        return self._begin(caller, name, act)

    async def close(self) -> None:
        """End all calls; nothing must be held then."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        held = self.traffic.usage()
        assert held.send_bytes == held.pinned_bytes == 0

    def _begin(self, caller: Caller, name: str, act: Callable[[Call], Any]) -> asyncio.Task[Any]:
        async def run() -> Any:
            call = Call(caller)
            call.caller, call.task = name, asyncio.current_task()
            try:
                return await act(call)
            except asyncio.CancelledError:
                if call.refusal is None:
                    raise
                raise call.refusal from None

        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task


def sized(payload: bytes) -> Artifact:
    return replace(artifact(), size_bytes=len(payload), frames=to_frames(payload))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_LOOK_S", 0.01)
    monkeypatch.setattr(traffic, "_SLOW_S", 0.03)


async def refusal_of(task: asyncio.Task[Any]) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        await task
    assert failure.value.reason is Reason.COMPILE_QUEUE_FULL
    assert failure.value.retry_after_s
    return failure.value


# Requests


@pytest.mark.parametrize(
    ("message", "held_bytes"),
    [
        (b"", 0),  # The end of them.
        (b"hello", 5),
        (bytes(100 * KIB), 200 * KIB),  # With the copy that protobuf makes.
    ],
)
async def test_what_arrives_counts_until_it_is_released(message: bytes, held_bytes: int) -> None:
    rig = Rig()
    got, call = await rig.read(Caller(message), most_bytes=100 * KIB)
    assert (got or b"") == message
    assert rig.traffic.receive_bytes == held_bytes
    call.release_request()
    call.release_request()
    assert rig.traffic.receive_bytes == 0
    with pytest.raises(WasmkilnError, match="at most 102,400") as failure:
        await rig.read(Caller(bytes(100 * KIB + 1)), most_bytes=100 * KIB)
    assert failure.value.metadata == {"at_most": "102400", "size_bytes": "102401"}
    assert rig.traffic.receive_bytes == 0


async def test_slow_ones_beyond_the_share_are_refused_and_quick_ones_never_wait() -> None:
    rig = Rig(receive_bytes=8 * MESSAGE)  # room for four
    slow = [Caller() for _ in range(10)]
    calls = [rig.read(caller, f"slow {number}") for number, caller in enumerate(slow)]
    await until(lambda: sum(call.done() for call in calls) == 6)
    for call in calls:
        if call.done():
            assert (await refusal_of(call)).metadata["limit"] == "receive"
    assert rig.traffic.receive_bytes == 4 * MESSAGE
    for _ in range(100):
        (await rig.read(Caller(b"x"), "quick"))[1].release_request()
    await rig.close()
    assert rig.traffic.receive_bytes == 0


async def test_a_caller_with_all_slow_ones_loses_them_to_others_until_all_have_as_many() -> None:
    rig = Rig(receive_bytes=8 * MESSAGE)
    flood = [rig.read(Caller(), "flood") for _ in range(10)]
    await until(lambda: sum(not call.done() for call in flood) == 4)
    others = [rig.read(Caller(), "other") for _ in range(4)]
    await until(lambda: sum(not call.done() for call in flood) == 2)
    await until(lambda: sum(not call.done() for call in others) == 2)
    assert rig.traffic.receive_bytes == 4 * MESSAGE
    await rig.close()
    assert rig.traffic.receive_bytes == 0


async def test_one_that_waited_for_its_turn_costs_one_slow_request_of_others_at_most() -> None:
    """It keeps its place before those that it makes room with."""
    rig = Rig(receive_bytes=4 * MESSAGE)  # room for two
    held = (await rig.read(Caller(bytes(MESSAGE)), "a"))[1]
    waited = rig.read(Caller(), "a")
    slow = [rig.read(Caller(), "b"), rig.read(Caller(), "b")]
    await until(lambda: rig.traffic.receive_bytes == 3 * MESSAGE)
    held.release_request()
    await until(lambda: any(call.done() for call in (waited, *slow)))
    await asyncio.sleep(0.3)
    assert sum(call.done() for call in (waited, *slow)) == 1
    assert rig.traffic.receive_bytes == 2 * MESSAGE
    await rig.close()
    assert rig.traffic.receive_bytes == 0


async def test_who_holds_as_much_as_it_leaves_free_waits_and_others_do_not() -> None:
    rig = Rig(receive_bytes=8 * MESSAGE)
    held = [(await rig.read(Caller(bytes(MESSAGE)), "flood"))[1] for _ in range(2)]
    waiting = rig.read(Caller(bytes(MESSAGE)), "flood")
    leaving = rig.read(Caller(bytes(MESSAGE)), "flood")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    (await rig.read(Caller(b"x"), "other"))[1].release_request()
    leaving.cancel()
    held.pop().release_request()
    _, call = await waiting
    for each in (call, *held):
        each.release_request()
    assert rig.traffic.receive_bytes == 0


async def test_who_waits_too_long_to_be_read_is_refused() -> None:
    rig = Rig(receive_bytes=8 * MESSAGE, caller_timeout_s=0.1)
    for _ in range(2):
        await rig.read(Caller(bytes(MESSAGE)))
    assert "already hold" in (await refusal_of(rig.read(Caller(b"x")))).message


# Answers


async def test_the_last_message_counts_until_the_call_has_ended() -> None:
    rig, caller = Rig(), Caller(reads=False)
    call = rig.send(caller, sized(bytes(20_000)))
    await until(lambda: rig.traffic.usage().send_bytes)
    assert 20_000 < rig.traffic.usage().send_bytes < 20_010
    assert rig.traffic.usage().pinned_bytes == 20_000
    caller.reads.set()
    await call
    assert rig.traffic.usage().send_bytes == rig.traffic.usage().pinned_bytes == 0


async def test_a_caller_with_many_unread_answers_leaves_whole_frames_to_others() -> None:
    rig, one = Rig(receive_bytes=256 * MIB), sized(bytes(MIB))
    for _ in range(300):
        rig.send(Caller(reads=False), one, "flood")
    await until(lambda: rig.traffic.usage().send_bytes > 16 * MIB)
    caller = Caller()
    await rig.send(caller, one, "other")
    assert payload_of(caller.got) == bytes(MIB)
    assert max(map(len, caller.got)) > 512 * KIB
    await rig.close()


async def test_a_message_that_cannot_be_cut_is_refused_where_there_is_no_room() -> None:
    rig = Rig(receive_bytes=32 * MIB, max_calls=64)
    held = [Call(Caller()) for _ in range(8)]

    def hold() -> None:
        for call in held:
            call.caller = "a"
            rig.traffic.hold(call, bytes(256 * KIB))

    hold()
    one = Call(Caller())
    one.caller = "a"
    with pytest.raises(WasmkilnError) as failure:
        rig.traffic.hold(one, bytes(256 * KIB))
    assert failure.value.metadata["limit"] == "send"
    assert rig.traffic.usage().send_bytes == 2 * MIB
    rig.traffic.hold(one, bytes(64 * KIB))
    for call in (*held, one):
        rig.traffic.end(call)
    await rig.close()


async def test_a_probe_waits_for_no_other_question() -> None:
    over, began = asyncio.Event(), Counter[str]()
    entry = Entry(
        Traffic(Reloadable(limits(max_calls=100)), MESSAGE),
        cast(Any, SimpleNamespace(rpc=lambda *_: None)),
        cast(Any, SimpleNamespace(admit=lambda *_: ANYBODY)),
        cast(Any, SimpleNamespace(on=False)),
    )

    async def find(request: bytes, call: Call) -> bytes:
        began["FindMissing"] += 1
        await over.wait()
        return b""

    async def check(request: bytes, call: Call) -> bytes:
        return b"well"

    asked = unary("/wasmkiln.v1.ModuleService/FindMissing", bytes, find, entry).stream_unary
    asking = [asyncio.ensure_future(asked(None, Quick())) for _ in range(20)]
    await until(lambda: began["FindMissing"])
    probed = unary("/grpc.health.v1.Health/Check", bytes, check, entry, probe=True).stream_unary
    async with asyncio.timeout(10):
        assert await asyncio.ensure_future(probed(None, Quick())) == b"well"
    assert began["FindMissing"] < len(asking)
    over.set()
    await asyncio.gather(*asking)
    assert began["FindMissing"] == len(asking)


class Quick(Context):
    """A call whose request is there, and empty."""

    async def read(self) -> bytes:
        return b""


# Artifacts that are being sent


async def test_an_artifact_counts_for_a_caller_that_it_is_sent_to() -> None:
    rig, one = Rig(receive_bytes=4 * MIB), sized(bytes(2 * MIB))
    first, second = Caller(reads=False), Caller(reads=False)
    calls = [rig.send(first, one, "first"), rig.send(second, one, "second")]
    await until(lambda: rig.traffic.usage().send_bytes > MIB)
    first.reads.set()
    await calls[0]
    await rig.send(Caller(), sized(b"1" * MIB), "first")
    failure = await refusal_of(rig.send(Caller(), sized(b"2" * MIB), "second"))
    assert failure.metadata["limit"] == "send"
    await rig.close()


async def test_one_artifact_alone_may_be_larger_than_all() -> None:
    rig = Rig(receive_bytes=MIB)
    caller = Caller()
    await rig.send(caller, sized(bytes(2 * MIB)))
    assert payload_of(caller.got) == bytes(2 * MIB)


@pytest.mark.parametrize("offset_bytes", [0, 1, wire.CHUNK_BYTES, wire.CHUNK_BYTES + 1])
async def test_of_one_that_is_read_as_it_is_sent_a_frame_counts_for_each_call(
    offset_bytes: int,
) -> None:
    payload, read = bytes(range(256)) * 8 * 1024, list[int]()

    async def frame(at: int) -> bytes:
        read.append(at)
        return wire.frame(payload[at : at + wire.CHUNK_BYTES])

    def pieces(offset_bytes: int) -> Iterator[Awaitable[bytes]]:
        return map(frame, range(offset_bytes, len(payload), wire.CHUNK_BYTES))

    one = replace(artifact(), size_bytes=len(payload), pieces=pieces, frames=())
    rig = Rig(receive_bytes=16 * MIB)
    callers = [Caller(reads=False), Caller(reads=False)]
    calls = [rig.send(each, one, str(each), offset_bytes) for each in callers]
    await until(lambda: len(read) == 2)
    await asyncio.sleep(0)
    assert rig.traffic.usage().pinned_bytes == 2 * wire.CHUNK_BYTES
    assert read == [offset_bytes] * 2  # The next frame is read when this one has gone.
    for each in callers:
        each.reads.set()
    await asyncio.gather(*calls)
    assert all(payload_of(each.got) == payload[offset_bytes:] for each in callers)
    await rig.close()


@pytest.mark.parametrize("is_coming", [False, True])
async def test_what_the_caller_has_is_neither_copied_nor_sent(is_coming: bool) -> None:
    whole = sized(bytes(range(256)) * 8 * 1024)
    frames, loop = whole.frames, asyncio.get_running_loop()
    if is_coming:
        whole = replace(whole, frames=(), coming=[loop.create_future() for _ in frames])
        for future, each in zip(whole.coming, frames, strict=True):
            future.set_result(each)
    caller, rig = Caller(), Rig()
    offset_bytes = wire.CHUNK_BYTES + 7
    await rig.send(caller, whole, offset_bytes=offset_bytes)
    assert payload_of(caller.got) == payload_of(frames)[offset_bytes:]
    assert [any(got is each for each in frames) for got in caller.got] == [False, True, True]
    await rig.close()


# Whose turn a call takes


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        # Everybody has the same address on loopback: a connection is a caller there.
        ("ipv4:127.0.0.1:47818", "ipv4:127.0.0.1:47818"),
        ("ipv6:%5B::1%5D:52626", "ipv6:%5B::1%5D:52626"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:52626", "ipv6:%5B::ffff:127.0.0.1%5D:52626"),
        # Another machine is one caller, however many connections it opens.
        ("ipv4:192.0.2.7:1000", "192.0.2.7"),
        ("ipv4:192.0.2.7:2000", "192.0.2.7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:3000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:1000", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1000", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/kiln.sock", "unix"),
        ("", ""),
        ("ipv4:what:1", "ipv4:what:1"),
    ],
)
def test_caller_of_peer(peer: str, caller: str) -> None:
    assert caller_of(peer) == caller
