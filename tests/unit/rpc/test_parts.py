"""Messages of many parts are what protobuf would have read and written."""

from __future__ import annotations

from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.types_pb2 import ArtifactKey
from wasmkilnd.rpc.wire.bounds import plan_of
from wasmkilnd.rpc.wire.parts import Parts, repeated
from wasmkilnd.rpc.wire.requests import scan
from wasmkilnd.slices import in_slices

FIND_MISSING = "/wasmkiln.v1.ModuleService/FindMissing"
KEYS = [ArtifactKey(module_sha256=str(n), settings={"s": "v" * (n % 200)}) for n in range(1000)]


async def test_parts_are_the_messages_that_were_sent() -> None:
    raw = pb.FindMissingRequest(keys=KEYS).SerializeToString() + b"\x7a\x01x"
    parts = Parts(raw, (await in_slices(scan(raw, plan_of(FIND_MISSING)))).parts)
    assert [ArtifactKey.FromString(part) for part in parts] == KEYS
    assert ArtifactKey.FromString(parts[7]) == KEYS[7]


async def test_parts_are_written_as_protobuf_writes_them() -> None:
    parts = [key.SerializeToString() for key in KEYS]
    written = await repeated(pb.FindMissingResponse.MISSING_FIELD_NUMBER, parts)
    assert pb.FindMissingResponse.FromString(written).missing == KEYS
    assert await repeated(1, []) == b""
