"""The format of a stored value, version 3: what is under one key of the shared tier.

======================  ====================================================================
bytes                   what
======================  ====================================================================
frames                  the payload, cut into ``FRAME_BYTES``; each a zstd frame, or as it is
header                  JSON: what the value is, and size and SHA-256 of each stored frame
4 + 1 + 4               the magic ``WKLN``, the version, the header's length (big-endian)
32                      SHA-256 of the header and of the nine bytes before
96                      the stamp: a key's id and its Ed25519 signature of that digest
======================  ====================================================================

The head, header and what follows, stands at the end: so a writer sends one frame after the other
and holds none, and a reader gets the head and the last frames by one GETRANGE. The stamp covers
every byte of the value. A reader checks, in this order: magic, version, bounds, the digest (which
tells damage from forgery), the stamp, the header's shape, that it is about the key that was asked
for, the attestation with its signature, and then each frame before it is unpacked. What fails
raises ValueRejected, and nothing else, whatever the bytes.

The stamp of a revoked key must not live on in a copy. A daemon that copies a value from one tier to
another stamps the copy with its own key. So no stamp vouches for an artifact that another key
attested: its reader also hashes the whole payload and compares that with the attested digest.

The same bytes are what ``wasmkilnd cache export`` writes. Raise ``CACHE_FORMAT`` when they change:
it stands in the names of all keys, so daemons of both versions share a server, and neither reads
the other's values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias

import zstandard
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wasmkilnd import model, wire
from wasmkilnd.errors import DoesNotFit
from wasmkilnd.model import Artifact, EngineIdentity, Module
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.signing.keys import Keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import CHUNK_BYTES, frame, payload_views

# The version of this format.
CACHE_FORMAT = 3

RAW, ZSTD = "raw", "zstd"

# The size of a frame before it is packed: what one message to a caller carries.
FRAME_BYTES = CHUNK_BYTES

_TRAILER = struct.Struct(f">4sBI32s{model.STAMP_BYTES}s")
_START = struct.Struct(">4sBI")
# The bytes after the header: they are different for each value that a daemon writes.
TRAILER_BYTES = _TRAILER.size

# Imports and exports are cut at 256 KiB of text (types.proto), which JSON can make six times as
# long; all else together is a few KiB.
MAX_HEADER_BYTES = 4 * 1024 * 1024
# zstd adds at most 1/256 and a frame's header.
_MAX_STORED_FRAME_BYTES = FRAME_BYTES + FRAME_BYTES // 64

_MAGIC = b"WKLN"
# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln value 3\0"
# Artifacts shrink to 0.41 to 0.47 of their size at any level from 1 to 3 (docs/how-to/size.md).
_LEVEL = 1
# A payload that shrinks less costs its readers more time than the saved bytes do.
_PAYS_BELOW = 0.9
_LEAST_BYTES = 512
# Of a head that may be known again: of nearly every artifact.
_KNOWN_BYTES = 8192
UNPACKERS = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "wasmkiln-unpack")
_AHEAD = 4  # Frames of an artifact in memory that nobody has taken yet.
# The layer field of a component's preamble, see compile.admit.
_PREAMBLE, _COMPONENT_LAYER = b"\0asm", b"\x01\0"

Payload: TypeAlias = "bytes | memoryview"
# What a value is stored under: the key of an artifact, or the digest of a module.
Key: TypeAlias = "model.CacheKey | str"
_Pairs: TypeAlias = tuple[tuple[str, str], ...]


class ValueRejected(Exception):  # noqa: N818 - says what happened to the value
    """A stored value does not verify: never use it."""

    def __init__(self, cause: Cause, why: str) -> None:
        super().__init__(f"{cause.value}: {why}")
        self.cause = cause
        self.why = why


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Size = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Body(_Strict):
    # What makes two values of the same module or artifact differ, and so their trailers.
    nonce: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    codec: Literal["raw", "zstd"]
    size_bytes: _Size
    # Stored size and digest of each.
    frames: tuple[tuple[Annotated[int, Field(gt=0, le=_MAX_STORED_FRAME_BYTES)], _Digest], ...]


class _ArtifactHeader(_Strict):
    what: Literal["artifact"] = "artifact"
    body: _Body
    module: _Digest
    kind: model.Kind
    sha256: _Digest
    fingerprint: _Digest
    engine: EngineIdentity
    target: str
    cpu: str
    settings: dict[str, str]
    changed_settings: dict[str, str]
    compile_time_s: Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
    imports: tuple[tuple[str, str, str, str], ...]
    exports: tuple[tuple[str, str, str, str], ...]
    types_truncated: bool
    attestation: str


class _ModuleHeader(_Strict):
    what: Literal["module"] = "module"
    body: _Body
    kind: model.Kind
    sha256: _Digest


_HEADER: TypeAdapter[_ArtifactHeader | _ModuleHeader] = TypeAdapter(
    Annotated[_ArtifactHeader | _ModuleHeader, Field(discriminator="what")]
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it is stored, ``offset`` bytes into the value; ``size_bytes`` when unpacked."""

    offset: int
    stored_bytes: int
    sha256: str
    size_bytes: int

    @property
    def ends(self) -> int:
        """Where it ends in the value."""
        return self.offset + self.stored_bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """A value whose head is verified and whose frames are not.

    ``what`` is without its payload, of which ``size_bytes`` is the size when it is unpacked;
    ``stored_bytes`` is the size of the whole value, and ``signed_by`` the id of the stamp's key.
    ``encoding`` is that of frames which are ``ready``; empty for none.
    """

    what: Artifact | Module
    codec: str
    size_bytes: int
    frames: tuple[Frame, ...]
    stored_bytes: int
    signed_by: str
    encoding: str = ""

    @property
    def hashed_bytes(self) -> int:
        """How many bytes ``with_frames`` unpacks and hashes: none if one key signed all of it."""
        # An attestation that is verified has these bytes in no other place.
        attester = f'"keyid":"{self.signed_by}"'.encode()
        is_by_one = isinstance(self.what, Artifact) and attester in self.what.attestation
        return 0 if is_by_one else self.size_bytes

    def check(self, index: int, stored: Payload) -> Payload:
        """Return a frame as it is stored. Raise ValueRejected unless it is the one that it was."""
        expected = self.frames[index]
        if len(stored) != expected.stored_bytes:
            raise ValueRejected(Cause.TRUNCATED, f"frame {index} is cut off")
        if hashlib.sha256(stored).hexdigest() != expected.sha256:
            raise ValueRejected(Cause.DIGEST, f"frame {index} is damaged")
        return stored

    def ready(self, index: int, stored: Payload) -> bytes:
        """Return a frame as the wire carries it. Raise ValueRejected as ``check``."""
        return frame((self.check if self.encoding else self.unpack)(index, stored))

    def unpack(self, index: int, stored: Payload) -> Payload:
        """Return the bytes of a frame. Raise ValueRejected as ``check``."""
        checked, size_bytes = self.check(index, stored), self.frames[index].size_bytes
        return checked if self.codec == RAW else unpacked(checked, size_bytes)


def most_stored_bytes(size_bytes: int) -> int:
    """Return how large a value can be whose payload has no more than ``size_bytes``."""
    return size_bytes * 65 // 64 + 2 * MAX_HEADER_BYTES


def head_bytes(trailer: Payload) -> int:
    """Return the size of a value's head, given its last ``TRAILER_BYTES``; see ``open_head``."""
    if len(trailer) < TRAILER_BYTES:
        raise ValueRejected(Cause.TRUNCATED, f"the value has {len(trailer)} bytes")
    magic, version, header_bytes, _, _ = _TRAILER.unpack(trailer[-TRAILER_BYTES:])
    if magic != _MAGIC:
        raise ValueRejected(Cause.FORMAT, "the value has another magic")
    if version != CACHE_FORMAT:
        raise ValueRejected(Cause.VERSION, f"the value has format version {version}")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueRejected(Cause.FORMAT, f"the value has a header of {header_bytes} bytes")
    return TRAILER_BYTES + int(header_bytes)


def open_head(tail: Payload, sealer: Sealer) -> Opened:
    """Verify the head in which ``tail`` ends, but for what depends on the key: see ``open_value``.

    ``tail`` may begin anywhere before the head.
    """
    end, needed_bytes = len(tail) - TRAILER_BYTES, head_bytes(tail)
    if len(tail) < needed_bytes:
        raise ValueRejected(Cause.TRUNCATED, "the header is cut off")
    header = bytes(tail[len(tail) - needed_bytes : end])
    start = bytes(tail[end : end + _START.size])
    _, _, _, digest, stamp = _TRAILER.unpack(tail[end:])
    if hashlib.sha256(header + start).digest() != digest:
        raise ValueRejected(Cause.DIGEST, "the header is damaged")
    if refusal := sealer.check_stamp(_PURPOSE + digest, stamp):
        raise ValueRejected(Cause(refusal.cause), refusal.why)
    try:
        read = _HEADER.validate_json(header)
    except ValidationError:
        raise ValueRejected(Cause.FORMAT, "the header is malformed") from None
    body, frames, offset = read.body, list[Frame](), 0
    left_bytes = body.size_bytes
    for stored_bytes, sha256 in body.frames:
        frames.append(Frame(offset, stored_bytes, sha256, min(FRAME_BYTES, left_bytes)))
        offset, left_bytes = frames[-1].ends, left_bytes - frames[-1].size_bytes
    is_whole = not left_bytes and all(one.size_bytes for one in frames)
    if not is_whole or (body.codec == RAW and offset != body.size_bytes):
        raise ValueRejected(Cause.FORMAT, "the value has too few or too many frames")
    stored_bytes = offset + needed_bytes
    what, signed_by = _what(read), stamped_by(tail)
    return Opened(what, body.codec, body.size_bytes, tuple(frames), stored_bytes, signed_by)


def open_value(
    tail: Payload, key: Key, sealer: Sealer, accept: frozenset[str] = frozenset()
) -> Opened:
    """Verify the head in which ``tail`` ends, which was read as ``key``, and the attestation.

    Frames of an artifact stay encoded if that is one of ``accept``. The same head is not verified
    twice with the same keys, but its age counts each time.
    """
    head = bytes(tail[-head_bytes(tail) :])
    verify = _verified if len(head) <= _KNOWN_BYTES else _verified.__wrapped__
    opened = verify(head, key, sealer, sealer.keys, ZSTD in accept)
    if isinstance(opened.what, Artifact) and (refusal := sealer.outdated(opened.what)):
        raise ValueRejected(Cause(refusal.cause), refusal.why)
    return opened


@lru_cache(maxsize=512)
def _verified(head: bytes, key: Key, sealer: Sealer, _: Keys, takes_zstd: bool) -> Opened:
    """Do so; the keys are those that the sealer had before, and tell them from later ones."""
    opened = open_head(head, sealer)
    if opened.what.key != key:
        raise ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
    check_attestation(opened.what, sealer)
    stays = takes_zstd and opened.codec == ZSTD and isinstance(opened.what, Artifact)
    return dataclasses.replace(opened, encoding=ZSTD) if stays else opened


def check_attestation(what: Artifact | Module, sealer: Sealer) -> None:
    """Raise ValueRejected unless a key that is trusted now attested an artifact."""
    if isinstance(what, Artifact) and (refusal := sealer.verify(what, what.key)):
        raise ValueRejected(Cause(refusal.cause), refusal.why)


def stamped_by(tail: Payload) -> str:
    """Return the id of the key that a value's stamp names; this proves nothing."""
    return bytes(tail[-model.STAMP_BYTES :][:32]).hex()


def with_frames(opened: Opened, frames: Sequence[bytes]) -> Artifact | Module:
    """Return what was opened with all of its frames, which are ``ready``.

    Where ``hashed_bytes`` are many, call it in a thread. Raise ValueRejected for a payload with
    another digest.
    """
    views = payload_views(frames)
    if isinstance(opened.what, Module):
        wasm = b"".join(views)
        _check_whole(opened, [wasm])
        return dataclasses.replace(opened.what, wasm=wasm)
    if opened.hashed_bytes:
        (check_frames if opened.encoding else _check_whole)(opened, views)
    what = opened.what
    return dataclasses.replace(what, frames=tuple(frames), encoding=opened.encoding, described=what)


def check_frames(opened: Opened, stored: Iterable[Payload]) -> None:
    """Raise ValueRejected unless all frames, as they are stored, make up the whole payload."""
    _check_whole(opened, (opened.unpack(*each) for each in enumerate(stored)))


def _check_whole(opened: Opened, pieces: Iterable[Payload]) -> None:
    """Raise ValueRejected for a payload with another digest, or a module of another kind."""
    what, digest, beginning = opened.what, hashlib.sha256(), b""
    for piece in pieces:
        digest.update(piece)
        beginning = beginning or bytes(piece[:8])
    is_module = isinstance(what, Module)
    if digest.hexdigest() != what.sha256:
        cause = Cause.WRONG_KEY if is_module else Cause.MISMATCH
        raise ValueRejected(cause, "the bytes do not have the digest that they should")
    kind = model.Kind.COMPONENT if beginning[6:8] == _COMPONENT_LAYER else model.Kind.CORE_MODULE
    if is_module and beginning.startswith(_PREAMBLE) and what.kind is not kind:
        raise ValueRejected(Cause.FORMAT, "the header's kind is not the module's")


def written(what: Artifact | Module, sealer: Sealer) -> Iterator[bytes]:
    """Return the bytes of a value in order: each frame, then the head.

    Packing a frame takes milliseconds: take each in a thread. Raise DoesNotFit for a header that
    no reader would accept.
    """
    if isinstance(what, Artifact):
        views, size_bytes, encoding = payload_views(what.frames), what.size_bytes, what.encoding
        first: Payload = views[0] if views else b""
        payload: Iterable[Payload] = views
    else:
        first, payload = what.wasm[:FRAME_BYTES], wire.pieces(what.wasm)
        size_bytes, encoding = what.size_bytes, ""
    codec, packer, frames = encoding or _codec_for(first), zstandard.ZstdCompressor(_LEVEL), []
    for piece in payload:
        stored = bytes(piece) if encoding or codec == RAW else packer.compress(piece)
        frames.append((len(stored), hashlib.sha256(stored).hexdigest()))
        yield stored
    body = _Body.model_construct(
        nonce=secrets.token_hex(8), codec=codec, size_bytes=size_bytes, frames=tuple(frames)
    )
    header = _header(what, body).model_dump_json().encode()
    if len(header) > MAX_HEADER_BYTES:
        raise DoesNotFit(f"its header has {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    start = _START.pack(_MAGIC, CACHE_FORMAT, len(header))
    digest = hashlib.sha256(header + start).digest()
    yield b"".join((header, start, digest, sealer.stamp(_PURPOSE + digest)))


def unpacked_frames(artifact: Artifact) -> Iterator[bytes]:
    """Return the frames of an artifact that is encoded as they would be if it were not.

    Unpacking one takes a millisecond: take them in a thread. All cores work on those that are next.
    Raise ValueRejected for frames that do not unpack to the sizes that they should have.
    """
    pieces, starts = payload_views(artifact.frames), range(0, artifact.size_bytes, FRAME_BYTES)
    if len(pieces) != len(starts):
        raise ValueRejected(Cause.FORMAT, "the artifact has too few or too many frames")
    coming = deque[Future[bytes]]()
    for piece, start in zip(pieces, starts, strict=True):
        size_bytes = min(FRAME_BYTES, artifact.size_bytes - start)
        if len(pieces) == 1:  # Another thread would take longer.
            yield frame(unpacked(piece, size_bytes))
            return
        coming.append(UNPACKERS.submit(unpacked, piece, size_bytes))
        if len(coming) > _AHEAD:
            yield frame(coming.popleft().result())
    yield from (frame(each.result()) for each in coming)


def unpacked(stored: Payload, size_bytes: int) -> bytes:
    """Return the bytes of a zstd frame. Raise ValueRejected unless it has ``size_bytes``."""
    try:
        # Before zstd allocates the size that the frame claims.
        if zstandard.frame_content_size(stored) != size_bytes:
            raise ValueRejected(Cause.FORMAT, "a frame has another size than it should")
        unpack = _OF_THREAD.unpacker.decompress
        return unpack(stored, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError:
        raise ValueRejected(Cause.FORMAT, "cannot unpack a frame") from None


class _OfThread(threading.local):
    """What takes longer to make than to use."""

    def __init__(self) -> None:
        self.unpacker = zstandard.ZstdDecompressor()


_OF_THREAD = _OfThread()


def _codec_for(first: Payload) -> str:
    if len(first) < _LEAST_BYTES:
        return RAW
    shrunk = len(zstandard.ZstdCompressor(_LEVEL).compress(first))
    return ZSTD if shrunk < _PAYS_BELOW * len(first) else RAW


def _header(what: Artifact | Module, body: _Body) -> _ArtifactHeader | _ModuleHeader:
    # Of our own values: only what was read needs to be checked.
    common: dict[str, Any] = {"body": body, "kind": what.kind, "sha256": what.sha256}
    if isinstance(what, Module):
        return _ModuleHeader.model_construct(**common)
    return _ArtifactHeader.model_construct(
        **common,
        module=what.module_sha256,
        **(dataclasses.asdict(what.spec) | {"engine": what.spec.engine}),
        compile_time_s=float(what.compile_time_s),
        imports=tuple(map(dataclasses.astuple, what.imports)),
        exports=tuple(map(dataclasses.astuple, what.exports)),
        types_truncated=what.types_truncated,
        attestation=what.attestation.decode(),
    )


def _what(header: _ArtifactHeader | _ModuleHeader) -> Artifact | Module:
    """Return what a header is about, without its payload."""
    if isinstance(header, _ModuleHeader):
        return Module(header.sha256, header.kind, b"")
    settings, changed = tuple(header.settings.items()), tuple(header.changed_settings.items())
    spec = _spec(header.engine, header.target, header.cpu, settings, changed, header.fingerprint)
    return Artifact(
        *(header.module, header.kind, spec, header.sha256, header.body.size_bytes),
        frames=(),
        compile_time_s=header.compile_time_s,
        imports=tuple(model.ExternType(*row) for row in header.imports),
        exports=tuple(model.ExternType(*row) for row in header.exports),
        types_truncated=header.types_truncated,
        attestation=header.attestation.encode(),
    )


@lru_cache(maxsize=1024)
def _spec(
    engine: EngineIdentity, target: str, cpu: str, settings: _Pairs, changed: _Pairs, digest: str
) -> model.CompileSpec:
    """Return one object for all artifacts of a spec, which takes more memory than most headers."""
    return model.CompileSpec(engine, target, cpu, dict(settings), dict(changed), digest)
