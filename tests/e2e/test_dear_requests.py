"""Requests that are cheap to send and expensive to parse are refused before they are built.

tests/attack sends them for some time, and holds the daemon's loop and memory to bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from wasmkiln import Client
from wasmkiln.v1 import admin_service_pb2, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e.callers import COMPILE, ENGINE
from tests.e2e.daemon import Daemon
from tests.e2e.fixtures import serving

MIB = 1024 * 1024
FIND_MISSING = "/wasmkiln.v1.ModuleService/FindMissing"
DRAIN = "/wasmkiln.v1.AdminService/Drain"
EVICT = "/wasmkiln.v1.AdminService/Evict"
CHECK = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
CHANNELZ = "/grpc.channelz.v1.Channelz/GetServers"
INVALID = grpc.StatusCode.INVALID_ARGUMENT

LONG = "w" * (15 * MIB)
BY_DIGEST = pb.CompileRequest(sha256="0" * 64).SerializeToString()
KEY = types_pb2.ArtifactKey(module_sha256="0" * 64)


def settings(count: int) -> bytes:
    """Return that many settings, each of another name."""
    return b"".join(
        pb.CompileRequest(settings={f"k{number}": "true"}).SerializeToString()
        for number in range(count)
    )


def most_keys(address: str) -> bytes:
    """Return a request with 10,000 keys of 200 bytes, which the daemon there answers.

    Each has other settings, so that it can reuse nothing.
    """
    with Client(address) as client:
        offered = client.capabilities().engines[0].settings
    known = [each for each in offered if ".." not in each.allowed_values[-1]]
    keys = [
        types_pb2.ArtifactKey(
            module_sha256=f"{number:064x}",
            engine=ENGINE,
            settings={
                one.name: one.allowed_values[(number >> at) % len(one.allowed_values)]
                for at in range(3)
                for one in [known[(number + at) % len(known)]]
            },
        )
        for number in range(10_000)
    ]
    return pb.FindMissingRequest(keys=keys).SerializeToString()


# Each is made by the test that sends it: together they have some hundred megabytes.
REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "16 MiB of empty keys": (FIND_MISSING, lambda: b"\x0a\x00" * (8 * MIB - 8), ""),
    "10,001 keys": (
        FIND_MISSING,
        pb.FindMissingRequest(keys=[KEY] * 10_001).SerializeToString,
        "keys",
    ),
    "a key of 2 MiB": (FIND_MISSING, lambda: b"\x0a\xfa\xff\x7f" + b"\x2a\x00" * (MIB - 3), "keys"),
    "200,000 settings": (COMPILE, lambda: settings(200_000), ""),
    "64 KiB of settings": (COMPILE, lambda: BY_DIGEST + settings(4000), "settings"),
    "an engine of 15 MiB": (COMPILE, pb.CompileRequest(engine=LONG).SerializeToString, ""),
    "numbers": (COMPILE, lambda: b"\x38\x01" * (8 * MIB - 8), ""),
    "unknown numbers": (COMPILE, lambda: b"\x78\x01" * (8 * MIB - 8), ""),
    "groups in groups": (COMPILE, lambda: b"\x7b" * (4 * MIB) + b"\x7c" * (4 * MIB), ""),
    "the engine of Evict": (
        EVICT,
        lambda: admin_service_pb2.EvictRequest(engine=LONG).SerializeToString(),
        "",
    ),
    "graces that are merged": (DRAIN, lambda: b"\x0a\x00" * (8 * MIB - 8), ""),
    "a health service": (
        CHECK,
        lambda: health_pb2.HealthCheckRequest(service=LONG).SerializeToString(),
        "",
    ),
    "a symbol": (
        REFLECTION,
        lambda: reflection_pb2.ServerReflectionRequest(
            file_containing_symbol=LONG
        ).SerializeToString(),
        "",
    ),
    "what channelz never asks": (CHANNELZ, lambda: b"\x78\x01" * (8 * MIB - 8), ""),
}


daemon = serving(ENGINE)


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(daemon.address, options) as one:
        yield one


def refusal(channel: grpc.Channel, method: str, raw: bytes, priority: str = "") -> grpc.RpcError:
    """Send a request that the daemon refuses; return the error."""
    metadata = (("wasmkiln-priority", priority),) if priority else ()
    with pytest.raises(grpc.RpcError) as failure:
        list(channel.unary_stream(method)(raw, timeout=60, metadata=metadata))
    return failure.value


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_dear_to_build_is_refused(daemon: Daemon, channel: grpc.Channel, case: str) -> None:
    method, make, field = REFUSED[case]
    logged = len(daemon.log)
    failure = refusal(channel, method, make())
    assert failure.code() is INVALID, failure
    assert len(failure.details()) < 400
    trailers = dict(failure.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert info.reason == "INVALID_REQUEST"
    named = [v.field for d in status.details[1:] if d.Unpack(bad) for v in bad.field_violations]
    assert named == ([field] if field else [])
    attack = [line for line in daemon.log[logged:].splitlines() if "INVALID_ARGUMENT" in line]
    assert all(len(line) < 1000 for line in attack)


def test_10_000_keys_of_200_bytes_are_answered(daemon: Daemon, channel: grpc.Channel) -> None:
    raw = most_keys(daemon.address)
    assert 1.5 * MIB < len(raw) <= 2 * MIB
    [answer] = channel.unary_stream(FIND_MISSING)(raw, timeout=60)
    keys = pb.FindMissingRequest.FromString(raw).keys
    assert pb.FindMissingResponse.FromString(answer).missing == keys


def test_an_engine_that_is_as_long_as_may_be_is_quoted_in_part(channel: grpc.Channel) -> None:
    request = pb.CompileRequest(sha256="0" * 64, engine="w" * 128).SerializeToString()
    told = refusal(channel, COMPILE, request).details()
    assert f"'{'w' * 100}'… (28 more characters)" in told
    refused = refusal(channel, COMPILE, BY_DIGEST, priority="p" * 8000)
    assert refused.code() is INVALID
    assert "(7,900 more characters)" in refused.details()


def test_a_stream_of_reflection_has_an_end(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="wasmkiln.v1.Engine")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    with pytest.raises(grpc.RpcError) as failure:
        list(stub.ServerReflectionInfo(iter([request] * 1001)))
    assert failure.value.code() is INVALID
    assert "1,000 requests at most" in failure.value.details()


def test_channelz_answers_in_pages_and_says_what_is_not_there(channel: grpc.Channel) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(channel)
    [server] = stub.GetServers(channelz_pb2.GetServersRequest()).server
    request = channelz_pb2.GetServerSocketsRequest(
        server_id=server.ref.server_id, max_results=2**62
    )
    found = stub.GetServerSockets(request).socket_ref
    assert 0 < len(found) <= 500
    # Also where the core tells more of a socket than the library knows.
    last = channelz_pb2.GetSocketRequest(socket_id=found[-1].socket_id)
    socket = stub.GetSocket(last).socket
    assert socket.data.streams_started > 0
    with pytest.raises(grpc.RpcError) as failure:
        stub.GetSocket(channelz_pb2.GetSocketRequest(socket_id=-1))
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert "Unexpected" not in failure.value.details()
