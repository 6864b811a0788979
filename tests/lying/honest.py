"""True answers with every field filled in, so that there is something to lie about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()
# Larger than what a test lets into one message.
LARGE = WASM + bytes(100)
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()
ARTIFACT = b"native code " * 1000
MISSING = types.ArtifactKey(module_sha256=DIGEST)

ENGINE = types.Engine(
    id="wasmtime-50.0.1",
    name="wasmtime",
    version="50.0.1",
    core_version="50.0.1",
    compiler="cranelift",
)
_SECOND = Duration(seconds=1)


def header(request: modules.CompileRequest | None = None) -> types.ArtifactHeader:
    """What a daemon says of the artifact that a request asks for."""
    asked = request or modules.CompileRequest()
    return types.ArtifactHeader(
        module_sha256=asked.sha256 or hashlib.sha256(asked.module or WASM).hexdigest(),
        artifact_sha256=hashlib.sha256(ARTIFACT).hexdigest(),
        size_bytes=len(ARTIFACT),
        engine=ENGINE,
        target=asked.target or "x86_64-unknown-linux-gnu",
        cpu=asked.cpu or "baseline",
        settings={"consume_fuel": "false", **asked.settings},
        changed_settings=asked.settings,
        fingerprint="f" * 64,
        origin=types.ORIGIN_MEMORY,
        queue_time=_SECOND,
        compile_time=_SECOND,
        attestation=b"{}",
        kind=types.KIND_CORE_MODULE,
        imports=[types.ImportType(module="m", name="n", kind="EXTERN_KIND_TABLE", type="()")],
        exports=[types.ExportType(name="n", kind="EXTERN_KIND_TABLE", type="()")],
        types_truncated=True,
        signer_certificate=b"-----BEGIN CERTIFICATE-----",
    )


def filled(message: Message) -> Message:
    """Fill in every field that is empty: digests, names, ones, and a single element of each list.

    Of a oneof, fill in the first.
    """
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value.update({} if value else {"a": "b"})
        elif field.is_repeated and field.message_type is not None:
            filled(value[0] if value else value.add())
        elif field.is_repeated:
            value.extend([] if value else [_one(field)])
        elif field.message_type is not None:
            value.SetInParent()
            filled(value)
        elif not value:
            setattr(message, field.name, _one(field))
    return message


def _one(field: Any) -> Any:
    texts = {"module_sha256": DIGEST, "engine": ENGINE.id, "id": ENGINE.id}
    if field.type == FieldDescriptor.TYPE_STRING:
        return texts.get(field.name, "n")
    return b"n" if field.type == FieldDescriptor.TYPE_BYTES else 1


ANSWERS: dict[str, Message] = {
    "Load": filled(
        modules.LoadResponse(sha256=DIGEST, size_bytes=len(WASM), engine="wasmtime-50.0.1")
    ),
    **{
        kind.name.removesuffix("Response"): filled(GetMessageClass(kind)())
        for file in (modules.DESCRIPTOR, admin.DESCRIPTOR)
        for kind in file.message_types_by_name.values()
        if kind.name.endswith("Response")
        and not kind.name.startswith(("Load", "Compile", "Upload"))
    },
    "Upload": filled(
        modules.UploadResponse(
            loaded={"sha256": LARGE_DIGEST, "size_bytes": len(LARGE), "engine": "wasmtime-50.0.1"}
        )
    ),
    "Check": health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
    "Compile": modules.CompileResponse(header=header()),
}


def chunks(content: bytes = ARTIFACT, size_bytes: int = 5000) -> list[bytes]:
    """The messages that carry an artifact."""
    return [
        modules.CompileResponse(chunk=content[at : at + size_bytes]).SerializeToString()
        for at in range(0, len(content), size_bytes)
    ]


def compiled(told: bytes, request: bytes) -> Iterator[bytes]:
    """A Compile's messages behind one that holds a header."""
    yield told
    if not modules.CompileRequest.FromString(request).omit_artifact:
        yield from chunks()


def telling(method: str, told: bytes) -> Callable[[bytes, Any], Iterator[bytes]]:
    """An answer that says one thing; about a Compile, the artifact follows its header."""
    if method == "Compile":
        return lambda request, _context: compiled(told, request)
    return lambda _request, _context: iter([told])


def _compile(request: bytes, _context: Any) -> Iterator[bytes]:
    asked = modules.CompileRequest.FromString(request)
    told = modules.CompileResponse(header=header(asked)).SerializeToString()
    return compiled(told, request)


def _load(request: bytes, _context: Any) -> Iterator[bytes]:
    module = modules.LoadRequest.FromString(request).module
    answer = modules.LoadResponse.FromString(ANSWERS["Load"].SerializeToString())
    answer.sha256, answer.size_bytes = hashlib.sha256(module).hexdigest(), len(module)
    yield answer.SerializeToString()


def _find_missing(request: bytes, _context: Any) -> Iterator[bytes]:
    keys = modules.FindMissingRequest.FromString(request).keys
    yield modules.FindMissingResponse(missing=keys).SerializeToString()


HONEST: dict[str, Callable[[bytes, Any], Iterator[bytes]]] = {
    **{method: telling(method, message.SerializeToString()) for method, message in ANSWERS.items()},
    "Compile": _compile,
    "Load": _load,
    "FindMissing": _find_missing,
}
