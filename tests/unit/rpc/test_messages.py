"""Requests and results are translated whole, and what is malformed is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import duration_pb2
from wasmkiln.v1 import admin_service_pb2, module_service_pb2
from wasmkilnd.compile import LoadResult
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Kind, Module
from wasmkilnd.rpc import messages

from tests.unit.rpc.test_headers import ARTIFACT


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
            messages.CompileCall(request.SerializeToString())


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-1, 0), (0, -1), (-1, 1), (0, 10**9), (315_576_000_001, 0)]
)
def test_a_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(WasmkilnError, match="cannot use grace: expected a duration"):
        messages.seconds(duration_pb2.Duration(seconds=seconds, nanos=nanos), "grace")


@pytest.mark.parametrize("seconds", [0.0, 0.25, 30.0, 315_576_000_000.0])
def test_durations_survive_the_way_there_and_back(seconds: float) -> None:
    sent = admin_service_pb2.DrainResponse(grace=messages.duration(seconds))
    assert messages.seconds(sent.grace, "grace") == seconds


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
