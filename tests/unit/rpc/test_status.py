"""The error table as gRPC carries it."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd import errors
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc import messages as status


def test_every_reason_has_a_code() -> None:
    assert set(status.CODES) == set(Reason)
    assert grpc.StatusCode.OK not in status.CODES.values()
    assert grpc.StatusCode.UNKNOWN not in status.CODES.values()


def test_details() -> None:
    answer = status.to_status(errors.compile_queue_full("wasmtime-1", 7, 1.5))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert answer.details[0].Unpack(info)
    assert answer.details[1].Unpack(retry)
    assert answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert (info.domain, info.reason) == ("wasmkiln", "COMPILE_QUEUE_FULL")
    assert dict(info.metadata) == {"engine": "wasmtime-1", "limit": "queue", "waiting": "7"}
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_the_field_at_fault() -> None:
    answer = status.to_status(errors.digest_mismatch("a" * 64, "b" * 64))
    bad = error_details_pb2.BadRequest()
    assert answer.details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["expected_sha256"]


@pytest.mark.parametrize("text", ["x" * 100_000, "😀" * 50_000, "\ud800" * 5000])
def test_no_engine_message_outgrows_the_headers(text: str) -> None:
    answer = status.to_status(
        WasmkilnError(Reason.MODULE_INVALID, text, field="module", one=text, other=text)
    )
    percent_encoded = 3 * len(answer.message.encode())
    in_base64 = answer.ByteSize() * 4 // 3
    assert percent_encoded + in_base64 < 8 * 1024
    assert answer.message.endswith("…")


@given(st.text(max_size=300))
def test_short_texts_stay_as_they_are(text: str) -> None:
    shown = text.encode(errors="replace").decode()
    assert status.to_status(WasmkilnError(Reason.MODULE_INVALID, text)).message == shown
