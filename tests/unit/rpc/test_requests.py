"""Requests that are cheap to send and dear to build are refused before protobuf builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.messages import CompileCall, keys, reader, to_status

MIB = 1024 * 1024
MODULES = "/wasmkiln.v1.ModuleService"
COMPILE, LOAD = f"{MODULES}/Compile", f"{MODULES}/Load"
FIND_MISSING = f"{MODULES}/FindMissing"
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


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        (COMPILE, b"\x32\x00" * (8 * MIB)),  # settings
        (COMPILE, b"\x38\x01" * (8 * MIB)),  # one number again and again
        (COMPILE, pb.CompileRequest(engine="w" * (15 * MIB)).SerializeToString()),
        (COMPILE, b"\x12\x80\x80\x40" + bytes(MIB) + b"\x32\x00" * 40_000),
        (LOAD, b"\x1a\x00" * MIB),
        (LOAD, b"\x7a\x00" * MIB),  # what the daemon does not know
    ],
)
def test_a_module_with_too_much_beside_it_is_not_built(method: str, raw: bytes) -> None:
    failure = refusal(method, nothing_is_built, raw)
    most = messages.SMALL_BYTES
    assert failure.metadata["at_most"] == str(most)
    assert most < int(failure.metadata["size_bytes"]) <= len(raw)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"\x32\x00" * MIB, 0),
        (b"\x78\x01" * MIB, 0),
        (b"\x0a\x00" * MIB, 10_000),
        (b"\x8a\x80\x00\x80\x00" * MIB, 10_000),
    ],
)
def test_looking_for_keys_ends_after_a_few_fields(raw: bytes, found: int) -> None:
    seen: list[int] = []
    with pytest.raises(WasmkilnError) as failure:
        seen.extend(end for _, _, end in keys(raw))
    assert failure.value.reason is Reason.INVALID_REQUEST
    assert len(seen) == found
    # Each field counts as 64 bytes at least.
    assert not seen or seen[-1] <= 5 * 10_000


def test_a_module_may_come_a_few_times_and_the_last_counts() -> None:
    raw = (b"\x12\x80\x80\x04" + bytes(64 * 1024)) * 8 + b"\x12\x01w"
    assert refusal(COMPILE, nothing_is_built, raw).field == "module"
    assert reader(COMPILE, pb.CompileRequest.FromString)(raw[65_540:]).module == b"w"


@pytest.mark.parametrize(
    "raw", [b"\x0a" + b"\x80" * MIB, b"\x7b\x7c" * MIB, b"\x12\xff\xff\x7f" * MIB]
)
def test_of_many_bytes_that_are_no_message_nothing_is_built(raw: bytes) -> None:
    assert "no message of this call" in refusal(COMPILE, nothing_is_built, raw).message


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
        messages.wanted(finding)
    assert (refused.value.field, words in refused.value.message) == (f"keys.{field}", True)


def test_a_key_is_built_only_if_it_is_as_small_as_one_with_all_settings() -> None:
    with pytest.raises(WasmkilnError, match="keys has 70,000 bytes"):
        messages.wanted(b"\x2a\x00" * 35_000)


@pytest.mark.parametrize("field", ["module_sha256", "fingerprint"])
def test_a_key_has_digests(field: str) -> None:
    key = types_pb2.ArtifactKey(module_sha256=DIGEST)
    setattr(key, field, "x")
    with pytest.raises(WasmkilnError) as refused:
        messages.wanted(key.SerializeToString())
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_REQUEST, f"keys.{field}")


@pytest.mark.parametrize("raw", [b"\x1a\x02w", b"\x1a\x01\xff", b"\x80", b"\x0b"])
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    for _ in range(2):
        failure = refusal(COMPILE, pb.CompileRequest.FromString, raw)
        assert "no message of this call" in failure.message
    with pytest.raises(WasmkilnError, match="no message of this call"):
        messages.wanted(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # no length
        b"\x0a\x02\x00",  # less than its length
        b"\x0a\x80",
        b"\x80",
        b"\x80" * 20,
        b"\x08" + b"\xff" * 11,
        b"\x0c",  # the end of no group
        b"\x0e\x00",  # no such wire type
        b"\x0f\x00",
        b"\x09\x00",
        b"\x0d\x00\x00",
    ],
)
def test_keys_are_not_found_in_what_is_no_message(raw: bytes) -> None:
    with pytest.raises(Exception, match="parsing message"):
        pb.FindMissingRequest.FromString(raw)
    with pytest.raises(WasmkilnError, match="no message of this call"):
        list(keys(raw))


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


def test_10_000_keys_with_a_few_settings_fit() -> None:
    key = types_pb2.ArtifactKey(
        module_sha256=DIGEST,
        engine="wasmtime-50.0.1",
        target="x86_64-unknown-linux-gnu",
        cpu="x86-64-v3",
        settings={"consume_fuel": "true"},
    )
    raw = pb.FindMissingRequest(keys=[key] * 10_000).SerializeToString()
    assert reader(FIND_MISSING, bytes)(raw) == raw
    assert len(list(keys(raw))) == 10_000


def test_the_same_small_request_is_built_once() -> None:
    built: list[bytes] = []

    def parse(raw: bytes) -> pb.CompileRequest:
        built.append(raw)
        return pb.CompileRequest.FromString(raw)

    read = reader(COMPILE, parse)
    small = pb.CompileRequest(sha256=DIGEST, settings={"a": "b"}).SerializeToString()
    assert read(small) is read(small)
    assert read(pb.CompileRequest(sha256="1" * 64).SerializeToString()).sha256 == "1" * 64
    large = pb.CompileRequest(module=bytes(1000)).SerializeToString()
    assert read(large) is not read(large)
    assert len(built) == 4
