"""Requests that are cheap to send and dear to build are refused before anything is built."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from wasmkiln.v1 import admin_service_pb2, types_pb2
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc.wire.bounds import MAX_FIELDS, plan_of
from wasmkilnd.rpc.wire.requests import Scanned, scan
from wasmkilnd.rpc.wire.status import to_status

MIB = 1024 * 1024
COMPILE = "/wasmkiln.v1.ModuleService/Compile"
FIND_MISSING = "/wasmkiln.v1.ModuleService/FindMissing"
EVICT = "/wasmkiln.v1.AdminService/Evict"
CHECK = "/grpc.health.v1.Health/Check"
STATS = "/wasmkiln.v1.ModuleService/Stats"

DIGEST = "0" * 64
SETTING = b"\x32\x06\x0a\x01a\x12\x01b"  # {"a": "b"}
OVERLONG = b"\x80" * 8 + b"\x00"  # 0, in nine bytes


def scanned(raw: bytes, method: str, steps: int = 2000) -> Scanned:
    """Scan to the end, in at most so many steps of 512 fields."""
    scanning = scan(raw, plan_of(method))
    try:
        for _ in range(steps):
            next(scanning)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError(f"it takes more than {steps} steps")


def refusal(raw: bytes, method: str, steps: int = 25) -> WasmkilnError:
    with pytest.raises(WasmkilnError) as failure:
        scanned(raw, method, steps)
    assert failure.value.reason is Reason.INVALID_REQUEST
    assert len(to_status(failure.value).SerializeToString()) < 1000
    return failure.value


@pytest.mark.parametrize(
    ("method", "raw", "field", "words"),
    [
        (FIND_MISSING, b"\x0a\x00" * (8 * MIB), "keys", "keys may occur 10,000 times at most"),
        (COMPILE, SETTING * 200_000, "settings", "settings may occur 64 times at most"),
        (COMPILE, b"\x32\x00" * (8 * MIB), "settings", "64 times at most"),
        (
            COMPILE,
            pb.CompileRequest(engine="w" * (15 * MIB)).SerializeToString(),
            "engine",
            "engine has 15,728,640 bytes and may have at most 128",
        ),
        (
            COMPILE,
            pb.CompileRequest(settings={"x" * 129: ""}).SerializeToString(),
            "settings.key",
            "settings.key has 129 bytes",
        ),
        (
            FIND_MISSING,
            pb.FindMissingRequest(
                keys=[types_pb2.ArtifactKey(settings={str(n): "" for n in range(65)})]
            ).SerializeToString(),
            "keys.settings",
            "keys.settings may occur 64 times at most",
        ),
        (
            EVICT,
            admin_service_pb2.EvictRequest(module_sha256="a" * 1000).SerializeToString(),
            "module_sha256",
            "module_sha256 has 1,000 bytes",
        ),
        (
            CHECK,
            health_pb2.HealthCheckRequest(service="s" * MIB).SerializeToString(),
            "service",
            "service has 1,048,576 bytes",
        ),
        # One number, a text or a module again and again, of which the last counts.
        (COMPILE, b"\x38\x01" * (8 * MIB), "omit_artifact", "8 times at most"),
        (COMPILE, b"\x1a\x01w" * MIB, "engine", "8 times at most"),
        (COMPILE, (b"\x12\x80\x80\x40" + bytes(MIB)) * 9, "module", "8 times at most"),
        # A message that is not repeated grows with each time that it comes.
        ("/wasmkiln.v1.AdminService/Drain", b"\x0a\x00" * MIB, "grace", "8 times at most"),
    ],
)
def test_what_is_above_a_bound_is_refused_by_name(
    method: str, raw: bytes, field: str, words: str
) -> None:
    failure = refusal(raw, method)
    assert failure.field == field
    assert words in failure.message
    assert len(failure.message) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b"\x78\x01" * MIB,  # numbers
        b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x78\x01" * 100,
        b"\x7a\x00" * MIB,  # texts
        b"\x7b\x7c" * MIB,  # groups
        b"\x7b" * MIB + b"\x7c" * MIB,  # groups in groups
        b"\x0b" + b"\x0a\x00" * MIB + b"\x0c",  # what would be keys, in a group
        b"\x08\x01" * MIB,  # a known number with another wire type
        b"\x0d\x00\x00\x00\x00" * MIB,
    ],
)
@pytest.mark.parametrize("method", [FIND_MISSING, STATS, CHECK])
def test_unknown_fields_are_counted_too(raw: bytes, method: str) -> None:
    assert "fields that this daemon does not know" in refusal(raw, method, steps=1).message


def test_unknown_fields_may_have_so_many_bytes_and_no_more() -> None:
    few = b"\x7a\xe8\x07" + bytes(1000)
    assert scanned(few * 60, STATS) == Scanned()
    assert (
        "1,048,580 bytes or more in fields"
        in refusal(b"\x7a\x80\x80\x40" + bytes(MIB), STATS).message
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # no length
        b"\x0a\x02\x00",  # less than its length
        b"\x0a\x03\x0a\x02x" + b"x" * 9,  # a text that goes beyond its message
        b"\x0a\x80",
        b"\x80",
        b"\x80" * 20,
        b"\x08" + b"\xff" * 11,
        b"\x02\x00",  # the number 0
        b"\x0c",  # the end of no group
        b"\x0b\x14",  # the end of another group
        b"\x0b",  # no end
        b"\x0a\x01\x0b\x0c",  # a group that ends after its message
        b"\x0e\x00",  # no such wire type
        b"\x0f\x00",
        b"\x09\x00",
        b"\xff\xff\xff\xff\xff\x0f\x00",  # a number above what a field may have
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(Exception, match="parsing message"):
        pb.FindMissingRequest.FromString(raw)
    assert "no message of this call" in refusal(raw, FIND_MISSING).message


@pytest.mark.parametrize(
    ("raw", "engine"),
    [
        (b"\x9a\x00\x01w", "w"),  # a tag in more bytes than it needs
        (b"\x1a\x81\x80\x80\x00w", "w"),  # a length in more bytes
        (b"\x38" + OVERLONG + b"\x1a\x01w", "w"),
        (b"\x1a\x01v\x1a\x01w", "w"),  # the last counts
        (b"\x7b\x7a\x01x\x7c\x1a\x01w", "w"),  # beside a group
    ],
)
def test_what_protobuf_takes_is_taken(raw: bytes, engine: str) -> None:
    assert scanned(raw, COMPILE).cost_bytes > 0
    assert pb.CompileRequest.FromString(raw).engine == engine


def test_a_bound_holds_for_fields_in_disguise_too() -> None:
    assert refusal(b"\x9a\x80\x00\x81\x02" + b"w" * 257, COMPILE).field == "engine"
    assert refusal((b"\x8a\x80\x00\x80\x00") * 20_000, FIND_MISSING).field == "keys"


def test_no_request_has_more_fields_than_the_daemon_looks_at() -> None:
    entry = b"\x2a\x00" * 64
    key = b"\x0a\x80\x01" + entry
    assert len(scanned(key * 10_000, FIND_MISSING, 1300).parts) == 10_000
    dense = b"\x2a\x10" + b"\x0a\x00" * 8
    key = b"\x0a\x80\x09" + dense * 64
    failure = refusal(key * 10_000, FIND_MISSING, MAX_FIELDS // 512 + 1)
    assert "more than 1,000,000 fields" in failure.message


def test_every_key_with_every_setting_is_taken() -> None:
    key = types_pb2.ArtifactKey(
        module_sha256=DIGEST,
        engine="wasmtime-50.0.1",
        target="x86_64-unknown-linux-gnu",
        cpu="x86-64-v3",
        settings={f"cranelift_setting_{number}": "speed_and_size" for number in range(30)},
    )
    raw = pb.FindMissingRequest(keys=[key] * 10_000).SerializeToString()
    parts = scanned(raw, FIND_MISSING).parts
    assert len(parts) == 10_000
    for start, end in (parts[0], parts[-1]):
        assert types_pb2.ArtifactKey.FromString(raw[start:end]) == key


def test_what_a_message_costs_is_told() -> None:
    module = pb.CompileRequest(module=bytes(MIB)).SerializeToString()
    assert 2 * MIB < scanned(module, COMPILE).cost_bytes < 2 * MIB + 1000
    settings = pb.CompileRequest(settings={str(n): "" for n in range(64)}).SerializeToString()
    assert scanned(settings, COMPILE).cost_bytes > 64 * 256
    # Keys are built one by one, and little of each is kept.
    keys = pb.FindMissingRequest(keys=[types_pb2.ArtifactKey(module_sha256=DIGEST)] * 100)
    assert scanned(keys.SerializeToString(), FIND_MISSING).cost_bytes == 100 * 1024
