"""grpcurl, without any proto file, as a stranger in any language would."""

from __future__ import annotations

import base64

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.grpcurl import Grpcurl


@pytest.fixture
def grpcurl(daemon: Daemon) -> Grpcurl:
    return Grpcurl(daemon.address)


def test_describes_what_has_a_name_and_nothing_else(grpcurl: Grpcurl) -> None:
    for symbol, words in (
        ("wasmkiln.v1.ModuleService", "wasmkiln.v1.ModuleService is a service"),
        ("wasmkiln.v1.ModuleService.Compile", "returns ( stream .wasmkiln.v1.CompileResponse )"),
        ("wasmkiln.v1.AdminService.Drain", "rpc Drain"),
        ("wasmkiln.v1.CompileRequest", "oneof source"),
        ("wasmkiln.v1.CompileRequest.engine", "string engine = 3"),
        ("wasmkiln.v1.CompileRequest.source", "oneof source"),
        ("wasmkiln.v1.Origin", "ORIGIN_HOST_STORE = 5"),
        ("wasmkiln.v1.Origin.ORIGIN_MEMORY", "ORIGIN_MEMORY = 1"),
        ("wasmkiln.v1.IsolationLayer.State.STATE_ENFORCED", "STATE_ENFORCED = 1"),
        ("grpc.health.v1.Health.Check", "returns ( .grpc.health.v1.HealthCheckResponse )"),
        ("grpc.reflection.v1.ServerReflection", "rpc ServerReflectionInfo"),
    ):
        done = grpcurl("describe", symbol)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    for symbol in ("wasmkiln.v1.ModuleService.Melt", "wasmkiln.v1.Origin.ORIGIN_SUN", "Compile"):
        done = grpcurl("describe", symbol)
        assert done.returncode != 0
        assert "Symbol not found" in done.stderr


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_find_a_method(daemon: Daemon, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    asked = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="wasmkiln.v1.ModuleService.Compile"
    )
    with grpc.insecure_channel(daemon.address) as channel:
        call = channel.stream_stream(
            path,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        [answer] = call(iter([asked]), timeout=60)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert files[0].name == "wasmkiln/v1/module_service.proto"


def test_a_small_artifact_is_in_the_header_for_callers_that_say_so(grpcurl: Grpcurl) -> None:
    compile_ = "wasmkiln.v1.ModuleService/Compile"
    module = {"module": base64.b64encode(wasm.adder(101)).decode(), "engine": "wasmtime"}
    # As a caller of 0.2.0, which knows no limit.
    header, *chunks = grpcurl.json(compile_, module)
    assert "inline_artifact" not in header["header"]
    artifact = b"".join(base64.b64decode(part["chunk"]) for part in chunks)
    assert 0 < len(artifact) <= 64 * 1024
    for limit_bytes in (len(artifact), 2**32 - 1):
        [inline] = grpcurl.json(compile_, {**module, "inline_limit_bytes": limit_bytes})
        assert base64.b64decode(inline["header"].pop("inline_artifact")) == artifact
        assert inline["header"]["origin"] == "ORIGIN_MEMORY"
    for limit_bytes in (0, len(artifact) - 1):
        answer = grpcurl.json(compile_, {**module, "inline_limit_bytes": limit_bytes})
        assert answer == [inline, *chunks]
    wish = {**module, "inline_limit_bytes": 65_536, "omit_artifact": True}
    assert grpcurl.json(compile_, wish) == [inline]


def test_health_and_channelz(grpcurl: Grpcurl) -> None:
    for service in ("", "wasmkiln.v1.ModuleService", "wasmkiln.v1.AdminService"):
        [health] = grpcurl.json("grpc.health.v1.Health/Check", {"service": service})
        assert health == {"status": "SERVING"}
    [servers] = grpcurl.json("grpc.channelz.v1.Channelz/GetServers", {})
    assert int(servers["server"][0]["data"]["calls_started"]) > 0
