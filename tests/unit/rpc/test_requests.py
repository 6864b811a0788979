"""A request is counted for as long as it is held, and let go of whatever becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.types_pb2 import ArtifactKey
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.traffic import Call, Traffic
from wasmkilnd.rpc.wire.parts import Parts
from wasmkilnd.rpc.wire.requests import Requests

from tests.doubles.context import Context
from tests.unit.rpc.limits import limits

MIB = 1024 * 1024
SERVICE = "/wasmkiln.v1.ModuleService"


class Arrived(Context):
    """A call whose request is there."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    async def read(self) -> bytes:
        return self._raw


def call_with(raw: bytes) -> Call:
    return Call(Arrived(raw))


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(Reloadable(limits()), 16 * MIB, lambda _: False)


def requests(traffic: Traffic, type_: Any, method: str, held: list[int]) -> Requests:
    def parse(raw: bytes) -> Message:
        held.append(traffic.receive_bytes)
        message: Message = type_.FromString(raw)
        return message

    return Requests(f"{SERVICE}/{method}", parse, traffic)


async def test_what_is_built_counts_from_before_it_is_built(traffic: Traffic) -> None:
    held: list[int] = []
    raw = pb.CompileRequest(module=bytes(MIB)).SerializeToString()
    compiling = requests(traffic, pb.CompileRequest, "Compile", held)
    call = call_with(raw)
    request = await compiling.read(call)
    assert request == pb.CompileRequest.FromString(raw)
    assert held == [traffic.receive_bytes]
    assert 3 * MIB < traffic.receive_bytes < 3.01 * MIB
    call.release_request()
    call.release_request()
    assert traffic.receive_bytes == 0


async def test_many_keys_are_parts_and_nothing_is_built(traffic: Traffic) -> None:
    held: list[int] = []
    keys = [ArtifactKey(module_sha256=str(number)) for number in range(10_000)]
    raw = pb.FindMissingRequest(keys=keys).SerializeToString()
    finding = requests(traffic, pb.FindMissingRequest, "FindMissing", held)
    call = call_with(raw)
    request = await finding.read(call)
    assert isinstance(request, Parts)
    assert [ArtifactKey.FromString(part) for part in request] == keys
    assert held == []
    assert traffic.receive_bytes == len(raw) + 10_000 * 1024
    call.release_request()
    assert traffic.receive_bytes == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\x1a\xff\x01" + b"w" * 255,  # above a bound
        b"\x1a\x02w",  # no message
        b"\x1a\x01\xff",  # no text, which only protobuf finds out
        b"\x12\x80\x80\x40" + bytes(MIB) + b"\x1a\x01\xff",
    ],
)
async def test_nothing_is_held_of_what_is_refused(traffic: Traffic, raw: bytes) -> None:
    compiling, call = requests(traffic, pb.CompileRequest, "Compile", []), call_with(raw)
    with pytest.raises(WasmkilnError) as failure:
        await compiling.read(call)
    assert failure.value.reason is Reason.INVALID_REQUEST
    call.release_request()
    assert traffic.receive_bytes == 0


async def test_no_request_is_an_empty_one(traffic: Traffic) -> None:
    stats = requests(traffic, pb.StatsRequest, "Stats", [])
    assert await stats.read(call_with(b"")) == pb.StatsRequest()


async def test_the_same_small_request_is_built_once_and_counts_each_time(
    traffic: Traffic,
) -> None:
    built: list[int] = []
    compiling = requests(traffic, pb.CompileRequest, "Compile", built)
    raw = pb.CompileRequest(sha256="a" * 64, settings={"a": "b"}).SerializeToString()
    calls = call_with(raw), call_with(raw)
    first = await compiling.read(calls[0])
    counted = traffic.receive_bytes
    assert counted > len(raw)
    second = await compiling.read(calls[1])
    assert first is second
    assert traffic.receive_bytes == 2 * counted
    for call in calls:
        call.release_request()
    assert traffic.receive_bytes == 0
    other = pb.CompileRequest(sha256="b" * 64).SerializeToString()
    assert (await compiling.read(call_with(other))).sha256 == "b" * 64
    assert len(built) == 2


async def test_a_small_request_above_a_bound_is_refused_each_time(traffic: Traffic) -> None:
    compiling = requests(traffic, pb.CompileRequest, "Compile", [])
    raw = pb.CompileRequest(engine="e" * 129).SerializeToString()
    for _ in range(2):
        call = call_with(raw)
        with pytest.raises(WasmkilnError, match="engine has 129 bytes"):
            await compiling.read(call)
        call.release_request()
        assert traffic.receive_bytes == 0


async def test_a_large_request_is_not_kept(traffic: Traffic) -> None:
    built: list[int] = []
    compiling = requests(traffic, pb.CompileRequest, "Compile", built)
    raw = pb.CompileRequest(module=bytes(1000)).SerializeToString()
    for _ in range(2):
        await compiling.read(call_with(raw))
    assert len(built) == 2
