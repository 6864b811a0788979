"""The format of a stored value, version 1.

======  =====  ==================================================================
offset  bytes  what
======  =====  ==================================================================
0       4      the magic ``WKLN``
4       1      the format's version, 1
5       1      the codec of the payload: 0 is as it is
6       4      the header's length, big-endian
10      32     SHA-256 of the ten bytes before and of the header
42      ...    the header: JSON, see :mod:`wasmkilnd.cache.headers`
...     ...    the payload: an artifact's native code, or a module
======  =====  ==================================================================

Nothing is believed before it was checked, in the order of the bytes: magic,
version and codec, bounds, the header's digest, its shape, that it belongs to
the key asked for, and then the payload's length and digest. The two digests
together cover every byte, so whatever is damaged is found; against someone who
computes them anew there is the attestation, which is the next check.
"""

from __future__ import annotations

import hashlib
import struct

from wasmkilnd.cache import headers
from wasmkilnd.cache.rejected import Cause, ValueRejected
from wasmkilnd.model import Artifact, CacheKey, Kind, Module
from wasmkilnd.wire import payload_views, to_frames

MAGIC = b"WKLN"
FORMAT_VERSION = 1
RAW = 0

_START = struct.Struct(">4sBBI")
_DIGEST_BYTES = 32
HEADER_OFFSET = _START.size + _DIGEST_BYTES

# Imports and exports are cut at 256 KiB of text (types.proto), which JSON can
# make six times as long; all else together is a few KiB.
MAX_HEADER_BYTES = 4 * 1024 * 1024

# The layer field of a component's preamble, see admission.
_PREAMBLE = b"\0asm"
_COMPONENT_LAYER = b"\x01\0"

Piece = bytes | memoryview


def encode_artifact(artifact: Artifact) -> list[Piece]:
    """Answer the value in pieces, which share the artifact's memory: nothing is copied."""
    header = headers.write_artifact_header(artifact)
    if len(header) > MAX_HEADER_BYTES:
        header = headers.write_artifact_header(artifact, with_types=False)
    return [_start_of(header) + header, *payload_views(artifact.frames)]


def encode_module(module: Module) -> list[Piece]:
    """Answer the value in pieces, of which the last is the module's own bytes."""
    header = headers.write_module_header(module)
    return [_start_of(header) + header, module.wasm]


def decode_artifact(value: bytes, key: CacheKey) -> Artifact:
    """Verify ``value``, which was read from under ``key``, and answer what it holds.

    Raises ValueRejected, and nothing else, whatever the bytes. The attestation
    is not looked at.
    """
    end = header_end(value)
    header = headers.read_artifact_header(_header_of(value, end))
    if header.key != key:
        raise ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
    payload = _payload_of(value, end, header.size_bytes, header.sha256)
    return Artifact(
        module_sha256=key.module_sha256,
        kind=header.kind,
        spec=header.spec,
        sha256=header.sha256,
        size_bytes=header.size_bytes,
        frames=to_frames(payload),
        compile_time_s=header.compile_time_s,
        imports=header.imports,
        exports=header.exports,
        types_truncated=header.types_truncated,
        attestation=header.attestation,
    )


def decode_module(value: bytes, sha256: str) -> Module:
    """Verify ``value``, which was read as the module ``sha256``, and answer the module.

    Raises ValueRejected, and nothing else, whatever the bytes.
    """
    end = header_end(value)
    header = headers.read_module_header(_header_of(value, end))
    if header.sha256 != sha256:
        raise ValueRejected(Cause.WRONG_KEY, "the value is another module")
    wasm = bytes(_payload_of(value, end, header.size_bytes, sha256))
    is_component = wasm[6:8] == _COMPONENT_LAYER
    if wasm.startswith(_PREAMBLE) and is_component != (header.kind is Kind.COMPONENT):
        raise ValueRejected(Cause.FORMAT, "the header's kind is not the module's")
    return Module(sha256, header.kind, wasm)


def header_end(start: bytes) -> int:
    """Answer at which offset a value's header ends, given at least its first 42 bytes.

    Raises ValueRejected.
    """
    if len(start) < HEADER_OFFSET:
        cause = Cause.TRUNCATED if MAGIC.startswith(start[:4]) else Cause.FORMAT
        raise ValueRejected(cause, f"the value has {len(start)} bytes")
    magic, version, codec, header_bytes = _START.unpack_from(start)
    if magic != MAGIC:
        raise ValueRejected(Cause.FORMAT, "the value has another magic")
    if version != FORMAT_VERSION:
        raise ValueRejected(Cause.VERSION, f"the value has format version {version}")
    if codec != RAW:
        raise ValueRejected(Cause.VERSION, f"the value has codec {codec}")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueRejected(Cause.FORMAT, f"the value has a header of {header_bytes} bytes")
    return HEADER_OFFSET + int(header_bytes)


def engine_of(start: bytes) -> str:
    """Answer the engine id of the artifact whose value begins with ``start``, header included.

    Raises ValueRejected.
    """
    return headers.read_artifact_header(_header_of(start, header_end(start))).spec.engine.id


def kind_of(start: bytes) -> Kind:
    """Answer the kind of module that the artifact whose value begins so was made from.

    Raises ValueRejected.
    """
    return headers.read_artifact_header(_header_of(start, header_end(start))).kind


def _start_of(header: bytes) -> bytes:
    start = _START.pack(MAGIC, FORMAT_VERSION, RAW, len(header))
    return start + hashlib.sha256(start + header).digest()


def _header_of(value: bytes, end: int) -> bytes:
    header = value[HEADER_OFFSET:end]
    if len(header) < end - HEADER_OFFSET:
        raise ValueRejected(Cause.TRUNCATED, "the header is cut off")
    digest = hashlib.sha256(value[: _START.size] + header).digest()
    if digest != value[_START.size : HEADER_OFFSET]:
        raise ValueRejected(Cause.DIGEST, "the header is damaged")
    return header


def _payload_of(value: bytes, end: int, size_bytes: int, sha256: str) -> memoryview:
    payload = memoryview(value)[end:]
    if len(payload) < size_bytes:
        raise ValueRejected(
            Cause.TRUNCATED, f"the payload has {len(payload)} of {size_bytes} bytes"
        )
    if len(payload) > size_bytes:
        raise ValueRejected(Cause.FORMAT, "the payload is longer than the header says")
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise ValueRejected(Cause.DIGEST, "the payload is damaged")
    return payload
