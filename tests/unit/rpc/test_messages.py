"""Headers that are put together from serialized parts are what protobuf would have made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import duration_pb2
from wasmkiln.v1 import admin_service_pb2, module_service_pb2, types_pb2
from wasmkilnd import wire
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, ExternType, Kind, Module, Origin
from wasmkilnd.requests import LoadResult, Served, Terms
from wasmkilnd.rpc.wire import messages

ARTIFACT = Artifact(
    module_sha256="a" * 64,
    kind=Kind.COMPONENT,
    spec=CompileSpec(
        EngineIdentity("wasmtime", "50.0.1", "50", "cranelift"),
        "x86_64-unknown-linux-gnu",
        "native",
        {"consume_fuel": "true", "gc_support": "true"},
        {"consume_fuel": "true"},
        "f" * 64,
    ),
    sha256="b" * 64,
    size_bytes=4,
    frames=wire.to_frames(b"code"),
    compile_time_s=1.25,
    imports=(ExternType("env", "log", "function", "() -> ()"),),
    exports=(ExternType("", "run", "tag", ""), ExternType("", "x", "unheard of", "")),
)


def test_a_header_is_whole_whenever_it_is_made() -> None:
    frames = messages.HeaderFrames()
    for origin, queued_s in ((Origin.COMPILED, 0.5), (Origin.MEMORY, 0.0), (Origin.REDIS, 0.0)):
        frame = frames.frame(Served(ARTIFACT, origin, queued_s))
        response = module_service_pb2.CompileResponse.FromString(frame)
        assert response.WhichOneof("part") == "header"
        header = response.header
        assert header.origin == messages.ORIGINS[origin]
        assert header.queue_time.ToMilliseconds() == queued_s * 1000
        assert header.compile_time.ToMilliseconds() == 1250
        assert header.engine.id == "wasmtime-50.0.1"
        assert dict(header.changed_settings) == {"consume_fuel": "true"}
        assert header.kind == types_pb2.KIND_COMPONENT
        assert [i.module for i in header.imports] == ["env"]
        assert [e.kind for e in header.exports] == [
            types_pb2.EXTERN_KIND_TAG,
            types_pb2.EXTERN_KIND_OTHER,
        ]


@pytest.mark.parametrize(
    "request_",
    [
        admin_service_pb2.EvictRequest(),
        admin_service_pb2.EvictRequest(all=False),
        admin_service_pb2.EvictRequest(engine=""),
        admin_service_pb2.EvictRequest(engine="wasmtime"),
        admin_service_pb2.EvictRequest(module_sha256=""),
    ],
)
def test_an_eviction_needs_a_scope(request_: admin_service_pb2.EvictRequest) -> None:
    with pytest.raises(WasmkilnError):
        messages.evict_scope(request_)


def test_an_order_needs_a_source() -> None:
    for request in (
        module_service_pb2.CompileRequest(),
        module_service_pb2.CompileRequest(sha256=""),
    ):
        with pytest.raises(WasmkilnError):
            messages.compile_request(request, Terms())


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-1, 0), (0, -1), (-1, 1), (0, 10**9), (315_576_000_001, 0)]
)
def test_a_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(WasmkilnError, match="cannot use grace: expected a duration"):
        messages.seconds(duration_pb2.Duration(seconds=seconds, nanos=nanos), "grace")


@pytest.mark.parametrize("seconds", [0.0, 0.25, 30.0, 315_576_000_000.0])
def test_durations_survive_the_way_there_and_back(seconds: float) -> None:
    assert messages.seconds(messages.duration(seconds), "grace") == seconds


def test_the_answer_of_load_fits_into_what_clients_take_by_default() -> None:
    """A caller may have had a small module compiled with thousands of settings."""
    settings = {f"a_setting_of_an_engine_{number}": "speed_and_size" for number in range(40)}
    artifact = replace(ARTIFACT, spec=replace(ARTIFACT.spec, settings=settings))
    loaded = LoadResult(
        Module("a" * 64, Kind.COMPONENT, b""), "wasmtime-50.0.1", True, [artifact] * 3000
    )
    response = messages.load_response(loaded)
    assert len(response.artifacts) == messages.MAX_CACHED_ARTIFACTS == 1000
    assert response.ByteSize() < 4 * 1024 * 1024
