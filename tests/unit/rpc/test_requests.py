"""A request is counted for as long as it is held, and let go of whatever becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.types_pb2 import ArtifactKey
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow.receive import Receiver
from wasmkilnd.rpc.wire.parts import Parts
from wasmkilnd.rpc.wire.requests import Requests

from tests.unit.rpc.limits import limits

MIB = 1024 * 1024
SERVICE = "/wasmkiln.v1.ModuleService"


class Call:
    """A call whose request is there."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    async def read(self) -> bytes:
        return self._raw


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(Reloadable(limits()), 16 * MIB)


def requests(receiver: Receiver, type_: Any, method: str, held: list[int]) -> Requests:
    def parse(raw: bytes) -> Message:
        held.append(receiver.held_bytes)
        message: Message = type_.FromString(raw)
        return message

    return Requests(f"{SERVICE}/{method}", parse, receiver)


async def test_what_is_built_counts_from_before_it_is_built(receiver: Receiver) -> None:
    held: list[int] = []
    raw = pb.CompileRequest(module=bytes(MIB)).SerializeToString()
    compiling = requests(receiver, pb.CompileRequest, "Compile", held)
    request, release = await compiling.read(Call(raw), "a")
    assert request == pb.CompileRequest.FromString(raw)
    assert held == [receiver.held_bytes]
    assert 3 * MIB < receiver.held_bytes < 3.01 * MIB
    release()
    release()
    assert receiver.held_bytes == 0


async def test_many_keys_are_parts_and_nothing_is_built(receiver: Receiver) -> None:
    held: list[int] = []
    keys = [ArtifactKey(module_sha256=str(number)) for number in range(10_000)]
    raw = pb.FindMissingRequest(keys=keys).SerializeToString()
    finding = requests(receiver, pb.FindMissingRequest, "FindMissing", held)
    request, release = await finding.read(Call(raw), "a")
    assert isinstance(request, Parts)
    assert [ArtifactKey.FromString(part) for part in request] == keys
    assert held == []
    assert receiver.held_bytes == len(raw) + 10_000 * 1024
    release()
    assert receiver.held_bytes == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\x1a\xff\x01" + b"w" * 255,  # above a bound
        b"\x1a\x02w",  # no message
        b"\x1a\x01\xff",  # no text, which only protobuf finds out
        b"\x12\x80\x80\x40" + bytes(MIB) + b"\x1a\x01\xff",
    ],
)
async def test_nothing_is_held_of_what_is_refused(receiver: Receiver, raw: bytes) -> None:
    compiling = requests(receiver, pb.CompileRequest, "Compile", [])
    with pytest.raises(WasmkilnError) as failure:
        await compiling.read(Call(raw), "a")
    assert failure.value.reason is Reason.INVALID_REQUEST
    assert receiver.held_bytes == 0


async def test_no_request_is_an_empty_one(receiver: Receiver) -> None:
    stats = requests(receiver, pb.StatsRequest, "Stats", [])
    assert (await stats.read(Call(b""), "a"))[0] == pb.StatsRequest()


async def test_the_same_small_request_is_built_once_and_counts_each_time(
    receiver: Receiver,
) -> None:
    built: list[int] = []
    compiling = requests(receiver, pb.CompileRequest, "Compile", built)
    raw = pb.CompileRequest(sha256="a" * 64, settings={"a": "b"}).SerializeToString()
    first, release_first = await compiling.read(Call(raw), "a")
    counted = receiver.held_bytes
    assert counted > len(raw)
    second, release_second = await compiling.read(Call(raw), "b")
    assert first is second
    assert receiver.held_bytes == 2 * counted
    release_first()
    release_second()
    assert receiver.held_bytes == 0
    other = pb.CompileRequest(sha256="b" * 64).SerializeToString()
    assert (await compiling.read(Call(other), "a"))[0].sha256 == "b" * 64
    assert len(built) == 2


async def test_a_small_request_above_a_bound_is_refused_each_time(receiver: Receiver) -> None:
    compiling = requests(receiver, pb.CompileRequest, "Compile", [])
    raw = pb.CompileRequest(engine="e" * 129).SerializeToString()
    for _ in range(2):
        with pytest.raises(WasmkilnError, match="engine has 129 bytes"):
            await compiling.read(Call(raw), "a")
        assert receiver.held_bytes == 0


async def test_a_large_request_is_not_kept(receiver: Receiver) -> None:
    built: list[int] = []
    compiling = requests(receiver, pb.CompileRequest, "Compile", built)
    raw = pb.CompileRequest(module=bytes(1000)).SerializeToString()
    for _ in range(2):
        _, release = await compiling.read(Call(raw), "a")
        release()
    assert len(built) == 2
