"""The format of a stored value, version 2.

======  =====  ==================================================================
offset  bytes  what
======  =====  ==================================================================
0       4      the magic ``WKLN``
4       1      the format's version, 2
5       4      the header's length, big-endian
9       32     SHA-256 of the nine bytes before and of the header
41      96     the stamp: a key's id (32 bytes) and its Ed25519 signature (64)
               over that digest
137     ...    the header: JSON, see :mod:`wasmkilnd.cache.value.header`
...     ...    the payload's first piece; the others have keys of their own
======  =====  ==================================================================

All but the last is the head. The header holds size and digest of every piece (see
:mod:`wasmkilnd.cache.value.pieces`), so the stamp covers the whole value. A reader checks, in
this order: magic, version, bounds, the digest (which tells damage from forgery), the stamp, the
header's shape, that it is about the requested key, the attestation, and then each piece before
it is decompressed.

The version is part of every fingerprint and of the names of modules, so daemons with different
formats never read each other's values.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from wasmkilnd.cache.value.header import (
    read_header,
    write_artifact_header,
    write_module_header,
)
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.pieces import MAX_PIECE_BYTES, Body
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.fingerprint import CACHE_FORMAT
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey, Kind, Module, Refusal

V_co = TypeVar("V_co", bound=Artifact | Module, covariant=True)

MAGIC = b"WKLN"

_START = struct.Struct(">4sBI")
_DIGEST_BYTES = 32
_KEY_ID_BYTES = 32
_STAMP_AT = _START.size + _DIGEST_BYTES
HEADER_OFFSET = _STAMP_AT + STAMP_BYTES

# Imports and exports are cut at 256 KiB of text (types.proto), which JSON can
# make six times as long; all else together is a few KiB.
MAX_HEADER_BYTES = 4 * 1024 * 1024

MAX_VALUE_BYTES = HEADER_OFFSET + MAX_HEADER_BYTES + MAX_PIECE_BYTES
"""The most bytes that a value has under its own name, without its further pieces."""

# Nearly every head is far shorter.
_MAX_UNTRUSTED_BYTES = 64 * 1024

# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln stored value\0"

# The layer field of a component's preamble, see admission.
_PREAMBLE = b"\0asm"
_COMPONENT_LAYER = b"\x01\0"

Stamp = Callable[[bytes], bytes]
"""Signs a message."""
CheckStamp = Callable[[bytes, bytes], Refusal | None]
"""Returns why a stamp is not a trusted key's signature of a message; None if it is."""


@dataclass(frozen=True, slots=True)
class Opened(Generic[V_co]):
    """A value whose head is verified and whose pieces are not."""

    what: V_co
    """The artifact or module, without its payload."""
    body: Body
    first: memoryview
    """The bytes after the head: the first piece, if there is one."""


def write_artifact_head(artifact: Artifact, body: Body, stamp: Stamp) -> bytes:
    """Return the head of ``artifact``'s value; without its types if they are too long."""
    header = write_artifact_header(artifact, body)
    if len(header) > MAX_HEADER_BYTES:
        header = write_artifact_header(artifact, body, with_types=False)
    return _head(header, stamp)


def write_module_head(module: Module, body: Body, stamp: Stamp) -> bytes:
    """Return the head of ``module``'s value."""
    return _head(write_module_header(module, body), stamp)


def open_artifact(value: bytes, key: CacheKey, check: CheckStamp) -> Opened[Artifact]:
    """Verify the head of ``value``, which was read from under ``key``.

    The artifact has no frames yet; its attestation is not verified. Raises
    ValueRejected, and nothing else, whatever the bytes.
    """
    opened = open_any(value, check)
    if not isinstance(opened.what, Artifact):
        raise ValueRejected(Cause.WRONG_KEY, "the value holds no artifact")
    if opened.what.key != key:
        raise ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
    return Opened(opened.what, opened.body, opened.first)


def open_module(value: bytes, sha256: str, check: CheckStamp) -> Opened[Module]:
    """Verify the head of ``value``, which was read as the module ``sha256``.

    The module has no bytes yet. Raises ValueRejected, and nothing else, whatever the bytes.
    """
    opened = open_any(value, check)
    if not isinstance(opened.what, Module):
        raise ValueRejected(Cause.WRONG_KEY, "the value holds no module")
    if opened.what.sha256 != sha256:
        raise ValueRejected(Cause.WRONG_KEY, "the value is another module")
    return Opened(opened.what, opened.body, opened.first)


def open_head(value: bytes, key: ValueKey, check: CheckStamp) -> Opened[Artifact | Module]:
    """Verify the head of ``value``, which was read from under ``key``, with the fitting one."""
    if key.artifact:
        return open_artifact(value, key.artifact, check)
    return open_module(value, key.module_sha256, check)


def open_any(value: bytes, check: CheckStamp) -> Opened[Artifact | Module]:
    """Verify the head of ``value``; the caller checks that it is about the right key.

    Raises ValueRejected, and nothing else, whatever the bytes.
    """
    end = head_end(value)
    what, body = read_header(_header_of(value, end, check))
    body.check()
    first = memoryview(value)[end:]
    if first and not body.pieces:
        raise ValueRejected(Cause.FORMAT, "the value is longer than its header says")
    return Opened(what, body, first)


def open_anyones(
    value: bytes, check: CheckStamp
) -> tuple[Opened[Artifact | Module], Refusal | None]:
    """As open_any, but also open a value of an untrusted key; return what ``check`` returned.

    For tools. A long head of an untrusted key is rejected: parsing it would take time and memory.
    """
    is_long = head_end(value) > _MAX_UNTRUSTED_BYTES
    refusal: Refusal | None = None

    def check_if_long(message: bytes, stamp: bytes) -> Refusal | None:
        nonlocal refusal
        refusal = check(message, stamp)
        return refusal if is_long else None

    return open_any(value, check_if_long), refusal


def stamped_by(value: bytes) -> str:
    """Return the id of the key that a value's stamp names; this proves nothing."""
    return value[_STAMP_AT : _STAMP_AT + _KEY_ID_BYTES].hex()


def check_module(module: Module) -> Module:
    """Return ``module`` if its bytes have its digest and kind. Raises ValueRejected."""
    if hashlib.sha256(module.wasm).hexdigest() != module.sha256:
        raise ValueRejected(Cause.WRONG_KEY, "the value is another module")
    check_kind(module.kind, module.wasm)
    return module


def check_kind(kind: Kind, wasm: bytes) -> None:
    """Raise ValueRejected unless ``wasm``, or the beginning of it, is of ``kind``."""
    is_component = wasm[6:8] == _COMPONENT_LAYER
    if wasm.startswith(_PREAMBLE) and is_component != (kind is Kind.COMPONENT):
        raise ValueRejected(Cause.FORMAT, "the header's kind is not the module's")


def head_end(start: bytes) -> int:
    """Return the length of a value's head, given at least its first 9 bytes.

    Raises ValueRejected.
    """
    if len(start) < _START.size:
        cause = Cause.TRUNCATED if MAGIC.startswith(start[:4]) else Cause.FORMAT
        raise ValueRejected(cause, f"the value has {len(start)} bytes")
    magic, version, header_bytes = _START.unpack_from(start)
    if magic != MAGIC:
        raise ValueRejected(Cause.FORMAT, "the value has another magic")
    if version != CACHE_FORMAT:
        raise ValueRejected(Cause.VERSION, f"the value has format version {version}")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueRejected(Cause.FORMAT, f"the value has a header of {header_bytes} bytes")
    return HEADER_OFFSET + int(header_bytes)


def _head(header: bytes, stamp: Stamp) -> bytes:
    start = _START.pack(MAGIC, CACHE_FORMAT, len(header))
    digest = hashlib.sha256(start + header).digest()
    return b"".join((start, digest, stamp(_PURPOSE + digest), header))


def _header_of(value: bytes, end: int, check: CheckStamp) -> bytes:
    header = value[HEADER_OFFSET:end]
    if len(header) < end - HEADER_OFFSET:
        raise ValueRejected(Cause.TRUNCATED, "the header is cut off")
    digest = hashlib.sha256(value[: _START.size] + header).digest()
    if digest != value[_START.size : _STAMP_AT]:
        raise ValueRejected(Cause.DIGEST, "the header is damaged")
    refusal = check(_PURPOSE + digest, value[_STAMP_AT:HEADER_OFFSET])
    if refusal:
        raise ValueRejected(Cause(refusal.cause), refusal.why)
    return header
