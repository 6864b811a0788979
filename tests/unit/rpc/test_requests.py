"""Requests that are cheap to send and dear to build are refused before protobuf builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2
from wasmkilnd.compile import Terms
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.messages import CompileCall, keys, reader, to_status

MIB = 1024 * 1024
MODULES = "/wasmkiln.v1.ModuleService"
COMPILE, LOAD = f"{MODULES}/Compile", f"{MODULES}/Load"
DIGEST = "0" * 64


def refusal(method: str, parse: Callable[[bytes], Any], raw: bytes) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        reader(method, parse)(raw)
    assert failure.value.reason is Reason.INVALID_REQUEST
    assert len(failure.value.message) < 300
    assert len(to_status(failure.value).SerializeToString()) < 1000
    return failure.value


def nothing_is_built(raw: bytes) -> None:
    raise AssertionError(f"{len(raw)} bytes are built")


def test_a_module_may_come_a_few_times_and_the_last_counts() -> None:
    raw = (b"\x12\x80\x80\x04" + bytes(64 * 1024)) * 8 + b"\x12\x01w"
    assert refusal(COMPILE, nothing_is_built, raw).field == "module"
    assert reader(COMPILE, pb.CompileRequest.FromString)(raw[65_540:]).module == b"w"


def test_a_large_module_is_taken_with_all_that_a_request_may_say_besides() -> None:
    settings = {f"cranelift_setting_{number}": "speed_and_size" for number in range(60)}
    sent = pb.CompileRequest(module=bytes(5 * MIB), engine="wasmtime", settings=settings)
    assert reader(COMPILE, pb.CompileRequest.FromString)(sent.SerializeToString()) == sent
    loading = pb.LoadRequest(module=bytes(5 * MIB), expected_sha256=DIGEST, engine="wasmtime")
    assert reader(LOAD, pb.LoadRequest.FromString)(loading.SerializeToString()) == loading


@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        ({"engine": "w" * 129}, "engine", "engine has 129 bytes and may have at most 128"),
        ({"target": "ü" * 65}, "target", "target has 130 bytes"),
        ({"cpu": "c" * 129}, "cpu", "cpu has 129 bytes"),
        (
            {"settings": {str(n): "" for n in range(65)}},
            "settings",
            "settings has 65 values and may have at most 64",
        ),
    ],
)
def test_what_is_above_a_bound_is_refused_by_name(
    sent: dict[str, Any], field: str, words: str
) -> None:
    compiling = pb.CompileRequest(sha256=DIGEST, **sent).SerializeToString()
    failure = refusal(COMPILE, CompileCall, compiling)
    assert (failure.field, words in failure.message) == (field, True)
    finding = types_pb2.ArtifactKey(module_sha256=DIGEST, **sent).SerializeToString()
    with pytest.raises(WasmkilnError) as refused:
        messages.wanted(finding, Terms())
    assert (refused.value.field, words in refused.value.message) == (f"keys.{field}", True)


@pytest.mark.parametrize("field", ["module_sha256", "fingerprint"])
def test_a_key_has_digests(field: str) -> None:
    key = types_pb2.ArtifactKey(module_sha256=DIGEST)
    setattr(key, field, "x")
    with pytest.raises(WasmkilnError) as refused:
        messages.wanted(key.SerializeToString(), Terms())
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_REQUEST, f"keys.{field}")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # no length
        b"\x0a\x02\x00",  # less than its length
        b"\x0a\x80",
        b"\x80" * 20,
        b"\x08" + b"\xff" * 11,
        b"\x0c",  # the end of no group
        b"\x0e\x00",  # no such wire type
        b"\x0d\x00\x00",
    ],
)
def test_keys_are_not_found_in_what_is_no_message(raw: bytes) -> None:
    with pytest.raises(Exception, match="parsing message"):
        pb.FindMissingRequest.FromString(raw)
    with pytest.raises(WasmkilnError, match="no message of this call"):
        list(keys(raw))
    with pytest.raises(WasmkilnError, match="no message of this call"):
        messages.wanted(raw, Terms())


def test_keys_are_found_as_protobuf_finds_them() -> None:
    wanted = [
        types_pb2.ArtifactKey(module_sha256=str(n), settings={"s": "v" * (n % 200)})
        for n in range(1000)
    ]
    sent = pb.FindMissingRequest(keys=wanted).SerializeToString()
    strange = (
        *(b"\x78\x01", b"\x7a\x01x", b"\x79" + bytes(8), b"\x7d" + bytes(4)),
        *(b"\x08\x01", b"\x0d" + bytes(4)),  # the number of keys with other wire types
    )
    raw = b"".join(strange) + sent + b"".join(strange)
    found = list(keys(raw))
    assert [types_pb2.ArtifactKey.FromString(raw[value:end]) for _, value, end in found] == wanted
    assert b"".join(raw[start:end] for start, _, end in found) == sent
    # A tag and a length in more bytes than they need.
    assert [*keys(b"\x8a\x80\x00\x81\x00x")] == [(0, 5, 6)]
