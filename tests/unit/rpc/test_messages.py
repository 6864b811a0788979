"""Requests and results are translated whole, and what is malformed is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import duration_pb2, text_format
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1 import admin_service_pb2, module_service_pb2
from wasmkilnd.compile import LoadResult
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Kind, Module
from wasmkilnd.rpc import messages

from tests.unit.rpc.test_headers import ARTIFACT


def test_an_eviction_needs_a_scope_and_an_order_a_source() -> None:
    for fields in ("", "all: false", "engine: ''", "engine: 'wasmtime'", "module_sha256: ''"):
        with pytest.raises(WasmkilnError):
            messages.evict_scope(text_format.Parse(fields, admin_service_pb2.EvictRequest()))
    for order in (b"", module_service_pb2.CompileRequest(sha256="").SerializeToString()):
        with pytest.raises(WasmkilnError):
            messages.CompileCall(order)


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-1, 0), (0, -1), (-1, 1), (0, 10**9), (315_576_000_001, 0)]
)
def test_a_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(WasmkilnError, match="cannot use grace: expected a duration"):
        messages.seconds(duration_pb2.Duration(seconds=seconds, nanos=nanos), "grace")


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


@pytest.mark.parametrize("text", ["x" * 100_000, "😀" * 50_000, "\ud800" * 5000])
def test_no_engine_message_outgrows_the_headers(text: str) -> None:
    answer = messages.to_status(
        WasmkilnError(Reason.MODULE_INVALID, text, field="module", one=text, other=text)
    )
    percent_encoded = 3 * len(answer.message.encode())
    in_base64 = answer.ByteSize() * 4 // 3
    assert percent_encoded + in_base64 < 8 * 1024
    assert answer.message.endswith("…")


@given(st.text(max_size=300))
def test_short_texts_stay_as_they_are(text: str) -> None:
    shown = text.encode(errors="replace").decode()
    assert messages.to_status(WasmkilnError(Reason.MODULE_INVALID, text)).message == shown
