"""A value's payload in pieces, so that no command moves more than one of them.

A piece is what one message to a caller carries (:data:`wasmkilnd.wire.CHUNK_BYTES`), compressed
by itself or as it is. The value's signed head holds the digest of each piece's *stored* bytes:
a piece is hashed once, and nothing is decompressed before its digest is checked.

A compressed piece is one zstd frame with its size in the frame's header. So the stored pieces of
an artifact, one after the other, are what a caller that accepts zstd decodes by itself: the
daemon keeps them as they are (:meth:`Body.stored_frames`), until somebody else needs the bytes
(:func:`decoded`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard

from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.model import Artifact
from wasmkilnd.wire import CHUNK_BYTES, frame, payload_views

RAW, ZSTD = "raw", "zstd"
CODECS = (RAW, ZSTD)

ENCODINGS = frozenset({ZSTD})
"""The encodings that an artifact's frames can have."""

PARTS_OUTLIVE_S = 3600
"""How much longer than its value a piece lives, so that no piece expires before its value."""

MAX_PIECE_BYTES = CHUNK_BYTES + CHUNK_BYTES // 64
"""The most stored bytes of a piece: zstd adds at most 1/256 and a header."""

# Artifacts shrink to 0.41 to 0.47 of their size at any level from 1 to 3 (docs/how-to/sizing.md).
_LEVEL = 1
# A payload that shrinks less costs its readers more time than the saved bytes do.
_PAYS_BELOW = 0.9
_LEAST_BYTES = 512


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece as it is stored."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Body:
    """How a payload is stored, as its head describes it."""

    codec: str
    size_bytes: int
    """The size of the whole payload, not compressed."""
    pieces: tuple[Piece, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all pieces as they are stored."""
        return sum(piece.size_bytes for piece in self.pieces)

    def check(self) -> None:
        """Raise ValueRejected unless the pieces can make up the payload."""
        if self.codec not in CODECS:
            raise ValueRejected(Cause.VERSION, "the value has an unknown codec")
        if len(self.pieces) != -(-self.size_bytes // CHUNK_BYTES):
            raise ValueRejected(Cause.FORMAT, "the value has too few or too many pieces")
        if not all(0 < piece.size_bytes <= MAX_PIECE_BYTES for piece in self.pieces):
            raise ValueRejected(Cause.FORMAT, "the value has a piece of an impossible size")

    def unpack(self, first: int, stored: Sequence[bytes | memoryview | None]) -> list[bytes]:
        """Return the unpacked bytes of the pieces from number ``first`` on.

        Raises ValueRejected unless each is there and is as the head describes it.
        """
        return [self._unpack(first + place, piece) for place, piece in enumerate(stored)]

    def frames(self, first: int, stored: Sequence[bytes | memoryview | None]) -> list[bytes]:
        """Do what ``unpack`` does; return the pieces as the wire carries them."""
        return [frame(raw) for raw in self.unpack(first, stored)]

    def stored_frames(self, first: int, stored: Sequence[bytes | memoryview | None]) -> list[bytes]:
        """Return the pieces from number ``first`` on as the wire carries them, not unpacked.

        For a body whose codec is zstd. Raises ValueRejected as ``unpack`` does, but for a piece
        whose compressed bytes were damaged before they were signed.
        """
        return [frame(self._packed(first + place, piece)) for place, piece in enumerate(stored)]

    def _packed(self, index: int, stored: bytes | memoryview | None) -> bytes | memoryview:
        checked = self._checked(index, stored)
        if _announced(checked) != raw_size(self.size_bytes, index):
            raise ValueRejected(Cause.FORMAT, f"piece {index} has another size than it should")
        return checked

    def _unpack(self, index: int, stored: bytes | memoryview | None) -> bytes:
        checked = self._checked(index, stored)
        size_bytes = raw_size(self.size_bytes, index)
        raw = bytes(checked) if self.codec == RAW else _decompress(checked, size_bytes)
        if len(raw) != size_bytes:
            raise ValueRejected(Cause.FORMAT, f"piece {index} has another size than it should")
        return raw

    def _checked(self, index: int, stored: bytes | memoryview | None) -> bytes | memoryview:
        expected = self.pieces[index]
        if stored is None:
            raise ValueRejected(Cause.INCOMPLETE, f"piece {index} is gone")
        if len(stored) < expected.size_bytes:
            raise ValueRejected(Cause.TRUNCATED, f"piece {index} is cut off")
        if len(stored) > expected.size_bytes:
            raise ValueRejected(Cause.FORMAT, f"piece {index} is too long")
        if hashlib.sha256(stored).hexdigest() != expected.sha256:
            raise ValueRejected(Cause.DIGEST, f"piece {index} is damaged")
        return stored


def raw_size(payload_bytes: int, index: int) -> int:
    """Return the unpacked size of a piece of a payload of ``payload_bytes``."""
    return min(CHUNK_BYTES, payload_bytes - index * CHUNK_BYTES)


def decoded(artifact: Artifact) -> Artifact:
    """Return ``artifact`` with the bytes themselves in its frames.

    Takes a few milliseconds for a megabyte: call it in a thread. Raises ValueRejected for frames
    that do not decode to the sizes that the artifact should have.
    """
    if not artifact.encoding:
        return artifact
    stored = payload_views(artifact.frames)
    if len(stored) != -(-artifact.size_bytes // CHUNK_BYTES):
        raise ValueRejected(Cause.FORMAT, "the artifact has too few or too many pieces")
    frames = []
    for index, piece in enumerate(stored):
        size_bytes = raw_size(artifact.size_bytes, index)
        raw = _decompress(piece, size_bytes)
        if len(raw) != size_bytes:
            raise ValueRejected(Cause.FORMAT, f"piece {index} has another size than it should")
        frames.append(frame(raw))
    return dataclasses.replace(artifact, frames=tuple(frames), encoding="")


def cut(payload: bytes) -> list[memoryview]:
    """Return ``payload`` in pieces, without copying."""
    view = memoryview(payload)
    return [view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES)]


def codec_for(payload: Sequence[memoryview]) -> str:
    """Return the codec for ``payload``: zstd if its first piece shrinks enough."""
    if not payload or len(payload[0]) < _LEAST_BYTES:
        return RAW
    shrunk = len(pack(ZSTD, payload[0])[0])
    return ZSTD if shrunk < _PAYS_BELOW * len(payload[0]) else RAW


def pack(codec: str, raw: memoryview) -> tuple[bytes, Piece]:
    """Return the bytes to store for a piece, and the piece's entry in the head."""
    stored = bytes(raw) if codec == RAW else zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    return stored, Piece(len(stored), hashlib.sha256(stored).hexdigest())


def _decompress(stored: bytes | memoryview, size_bytes: int) -> bytes:
    if _announced(stored) != size_bytes:
        return b""  # Before zstd allocates the size that the frame claims.
    try:
        decompressor = zstandard.ZstdDecompressor()
        return decompressor.decompress(stored, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueRejected(Cause.FORMAT, "cannot decompress a piece") from error


def _announced(stored: bytes | memoryview) -> int:
    """Return the size that a frame's header announces; -1 for none."""
    try:
        return zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise ValueRejected(Cause.FORMAT, "cannot decompress a piece") from error
