"""The bytes of artifacts as gRPC carries them.

A frame is a serialized ``CompileResponse`` with only its ``chunk`` field (number 2,
length-delimited). It is made once, when the artifact arrives, so that a hit in the memory tier
costs no more than sending bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from wasmkilnd.files.spooled import Spooled

# grpcio streams fastest in messages of 512 KiB to 1 MiB (docs/explanation/performance.md);
# the contract allows 1 MiB.
CHUNK_BYTES = 512 * 1024

# The largest artifact inside a header, whatever the caller allows: gRPC's first window.
ONE_MESSAGE_BYTES = 64 * 1024

_CHUNK_TAG = b"\x12"  # field 2, wire type 2


@dataclass(frozen=True, slots=True)
class Packed:
    """An artifact's bytes as the wire carries them, with their digest and size."""

    sha256: str
    size_bytes: int
    frames: tuple[bytes, ...] = field(repr=False)


@lru_cache(maxsize=4096)  # Of the same artifacts again and again.
def varint(number: int) -> bytes:
    """Encode a non-negative number as a protobuf varint."""
    if number < 0x80:
        return bytes([number])
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at``, and the position after it.

    Raises IndexError where the bytes end before, and OverflowError above 64 bits.
    """
    value = shift = 0
    while (byte := raw[at]) > 0x7F:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise OverflowError
    return value | byte << shift, at + 1


def pieces(wasm: bytes | Spooled) -> Iterator[bytes | memoryview]:
    """Cut a module into pieces of ``CHUNK_BYTES``; take those that are spooled in a thread."""
    whole = wasm if isinstance(wasm, Spooled) else memoryview(wasm)
    return (whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES))


async def read_pieces(wasm: bytes | Spooled, start: int = 0) -> AsyncGenerator[memoryview]:
    """Read a module from ``start`` on, in pieces of ``CHUNK_BYTES``. Raises COMPILE_QUEUE_FULL."""
    for at in range(start, len(wasm), CHUNK_BYTES):
        if isinstance(wasm, Spooled):
            yield memoryview(await wasm.read(at, CHUNK_BYTES))
        else:
            yield memoryview(wasm)[at : at + CHUNK_BYTES]


def held_bytes(wasm: bytes | Spooled) -> int:
    """Return how much memory a module takes: one that is in a file, a piece at a time."""
    return min(len(wasm), CHUNK_BYTES) if isinstance(wasm, Spooled) else len(wasm)


def frame(*parts: bytes | memoryview) -> bytes:
    """Serialize one chunk message, whose chunk may come in parts."""
    return b"".join((_CHUNK_TAG, varint(sum(map(len, parts))), *parts))


def cut(message: bytes, limit_bytes: int) -> Iterator[bytes]:
    """Cut a chunk message into chunk messages of about ``limit_bytes``."""
    [chunk] = payload_views((message,))
    for start in range(0, len(chunk), limit_bytes):
        yield frame(chunk[start : start + limit_bytes])


def payload_views(frames: Iterable[bytes]) -> list[memoryview]:
    """Return views of the payload inside ``frames``, without copying."""
    return [memoryview(frame)[read_varint(frame, 1)[1] :] for frame in frames]
