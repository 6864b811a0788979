"""The first message of Compile's answer: an artifact's header, and perhaps the artifact itself.

A hit builds no message: what an artifact says of itself is serialized once, and the daemon
appends the fields of the call to it. Protobuf allows the fields of a message in any order.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache

from wasmkiln.v1 import types_pb2

from wasmkilnd.model import Artifact, ExternType, Origin
from wasmkilnd.requests import Served
from wasmkilnd.rpc.wire.messages import KINDS, duration, engine
from wasmkilnd.wire import ONE_MESSAGE_BYTES, payload_views, varint

ORIGINS = {
    Origin.MEMORY: types_pb2.ORIGIN_MEMORY,
    Origin.REDIS: types_pb2.ORIGIN_REDIS,
    Origin.COMPILED: types_pb2.ORIGIN_COMPILED,
    Origin.JOINED_FLIGHT: types_pb2.ORIGIN_JOINED_FLIGHT,
    Origin.HOST_STORE: types_pb2.ORIGIN_HOST_STORE,
}
EXTERN_KINDS = {
    "function": types_pb2.EXTERN_KIND_FUNCTION,
    "global": types_pb2.EXTERN_KIND_GLOBAL,
    "table": types_pb2.EXTERN_KIND_TABLE,
    "memory": types_pb2.EXTERN_KIND_MEMORY,
    "tag": types_pb2.EXTERN_KIND_TAG,
}

_HEADER_TAG = b"\x0a"  # field 1 of CompileResponse, length-delimited
_INLINE_TAG = b"\x9a\x01"  # field 19 of ArtifactHeader, length-delimited


@dataclass(frozen=True, slots=True)
class SerializedAnswer:
    """An answer that is serialized already: its first message, and what follows."""

    first: bytes
    """The CompileResponse with the header."""
    artifact: Artifact | None = None
    """The artifact whose frames follow; None if no message follows."""
    artifact_bytes: int = 0
    """How many bytes of the artifact the answer has, as they are encoded."""


class Headers:
    """Puts answers together from what is kept for as long as the artifact is in memory."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Artifact, bytes] = weakref.WeakKeyDictionary()

    def answer(
        self, served: Served, *, omit_artifact: bool = False, inline_limit_bytes: int = 0
    ) -> SerializedAnswer:
        """Return the answer of a Compile call.

        The artifact is in the first message if it is small and not encoded. No byte of it is
        sent to a caller that gets a file's name.
        """
        artifact, size_bytes = served.artifact, served.artifact.size_bytes
        if omit_artifact or served.host_file:
            return SerializedAnswer(self._message(served))
        if artifact.encoding:
            size_bytes = sum(map(len, payload_views(artifact.frames)))
            first = self._message(served, _encoded(artifact.encoding))
            return SerializedAnswer(first, artifact, size_bytes)
        if size_bytes > min(inline_limit_bytes, ONE_MESSAGE_BYTES):
            return SerializedAnswer(self._message(served), artifact, size_bytes)
        payload = payload_views(artifact.frames)
        first = self._message(served, _INLINE_TAG, varint(size_bytes), *payload)
        return SerializedAnswer(first, None, size_bytes)

    def _message(self, served: Served, *more: bytes | memoryview) -> bytes:
        """Return the serialized CompileResponse whose header has ``more`` fields."""
        kept = self._kept.get(served.artifact)
        if kept is None:
            kept = self._kept[served.artifact] = header_of(served.artifact).SerializeToString()
        fields = (kept, _of_call(served), *more)
        return b"".join((_HEADER_TAG, varint(sum(map(len, fields))), *fields))


def header_of(artifact: Artifact) -> types_pb2.ArtifactHeader:
    """Return what an artifact says of itself, whichever call asks: no field of a call is set."""
    spec = artifact.spec
    return types_pb2.ArtifactHeader(
        module_sha256=artifact.module_sha256,
        artifact_sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        engine=engine(spec.engine),
        target=spec.target,
        cpu=spec.cpu,
        settings=spec.settings,
        changed_settings=spec.changed_settings,
        fingerprint=spec.fingerprint,
        compile_time=duration(artifact.compile_time_s),
        attestation=artifact.attestation,
        kind=KINDS[artifact.kind],
        imports=[_import(item) for item in artifact.imports],
        exports=[_export(item) for item in artifact.exports],
        types_truncated=artifact.types_truncated,
        is_fast=spec.is_fast,
    )


def _of_call(served: Served) -> bytes:
    """Return the fields of a header that differ from call to call."""
    if not served.queue_time_s and not served.host_file:
        return _of_origin(served.origin)
    header = types_pb2.ArtifactHeader(origin=ORIGINS[served.origin])
    if served.queue_time_s:
        header.queue_time.CopyFrom(duration(served.queue_time_s))
    if file := served.host_file:
        header.host_file.CopyFrom(
            types_pb2.HostFile(path=file.path, device=file.device, inode=file.inode)
        )
    return header.SerializeToString()


@cache
def _of_origin(origin: Origin) -> bytes:
    return types_pb2.ArtifactHeader(origin=ORIGINS[origin]).SerializeToString()


@cache
def _encoded(encoding: str) -> bytes:
    return types_pb2.ArtifactHeader(content_encoding=encoding).SerializeToString()


def _import(item: ExternType) -> types_pb2.ImportType:
    kind = EXTERN_KINDS.get(item.kind, types_pb2.EXTERN_KIND_OTHER)
    return types_pb2.ImportType(module=item.module, name=item.name, kind=kind, type=item.type)


def _export(item: ExternType) -> types_pb2.ExportType:
    kind = EXTERN_KINDS.get(item.kind, types_pb2.EXTERN_KIND_OTHER)
    return types_pb2.ExportType(name=item.name, kind=kind, type=item.type)
