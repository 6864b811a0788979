"""Lies about how an artifact comes: packed, inside its header, or both; each with its refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import zstandard
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.lying import honest

PIECE = 5000
_BLOCK = 128 * 1024


def packed(payload: bytes = honest.ARTIFACT, **options: Any) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor(**options).compress(payload)


def in_pieces(payload: bytes = honest.ARTIFACT) -> bytes:
    """A frame for each piece, one after the other, as a daemon sends them."""
    starts = range(0, len(payload), PIECE)
    return b"".join(packed(payload[start : start + PIECE]) for start in starts)


def bomb(size_bytes: int = 10**9) -> bytes:
    """A few bytes that become very many, in a frame that does not say how many.

    Written by hand (RFC 8878): to compress a gigabyte takes seconds, each time this is imported.
    """
    whole, rest = divmod(size_bytes, _BLOCK)
    blocks = _zeros(_BLOCK) * whole + _zeros(rest, last=True)
    # The magic number; no size, no checksum, no dictionary; a window of 128 KiB.
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(17 - 10) << 3]) + blocks


def _zeros(size_bytes: int, *, last: bool = False) -> bytes:
    """A block of zstd that is one byte so many times."""
    return (size_bytes << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0"


def _wide() -> bytes:
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    return compressor.compress(honest.ARTIFACT) + compressor.flush()


@dataclass(frozen=True)
class Told:
    """What a daemon sends: fields of the header, and chunks."""

    chunks: tuple[bytes, ...] = ()
    encoding: str = "zstd"
    inline: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict)

    def answer(self) -> Callable[[bytes, Any], Iterator[bytes]]:
        """For LyingServer.answers."""

        def messages(request: bytes, _context: Any) -> Iterator[bytes]:
            header = honest.header(modules.CompileRequest.FromString(request))
            header.content_encoding = self.encoding
            header.inline_artifact = self.inline
            header.MergeFrom(types.ArtifactHeader(**self.fields))
            yield modules.CompileResponse(header=header).SerializeToString()
            for chunk in self.chunks:
                yield modules.CompileResponse(chunk=chunk).SerializeToString()

        return messages


def _cut(stream: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(stream[start : start + size] for start in range(0, len(stream), size))


ONE, MANY = packed(), in_pieces()

TRUE: dict[str, Told] = {
    "one frame": Told((ONE,)),
    "many frames in one chunk": Told((MANY,)),
    "chunks of seven bytes": Told(_cut(MANY, 7)),
    "chunks of one byte": Told(_cut(ONE, 1)),
    "an empty chunk between": Told((ONE[:9], b"", ONE[9:])),
    "frames without their size": Told((packed(write_content_size=False),)),
    "frames with checksums": Told((packed(write_checksum=True),)),
    "an empty frame behind": Told((ONE, packed(b""))),
    "inside the header": Told(encoding="", inline=honest.ARTIFACT),
    "not encoded though it may be": Told(_cut(honest.ARTIFACT, 5000), encoding=""),
}

_NO_ZSTD = "cannot decode the artifact as zstd"
_LONGER = "longer than the 12000 bytes"

LIES: dict[str, tuple[Told, str]] = {
    "a bomb": (Told((bomb(),)), _LONGER),
    "a bomb in small chunks": (Told(_cut(bomb(), 1000)), _LONGER),
    "a bomb that says its size": (Told((packed(bytes(10**8)),)), _LONGER),
    "a window of 128 MiB": (Told((_wide(),)), _NO_ZSTD),
    "one byte more": (Told((packed(honest.ARTIFACT + b"x"),)), _LONGER),
    "one byte less": (Told((packed(honest.ARTIFACT[:-1]),)), "ended after 11999 of 12000"),
    "other bytes": (Told((packed(b"x" * 12_000),)), "have the SHA-256"),
    "half a frame": (Told((ONE[: len(ONE) // 2],)), "ended after"),
    "a frame is missing": (Told((MANY[: len(packed(honest.ARTIFACT[:PIECE]))],)), "ended after"),
    "nothing": (Told(), "ended after 0 of 12000"),
    "garbage": (Told((b"no zstd at all",)), _NO_ZSTD),
    "garbage behind": (Told((ONE, b"garbage")), _NO_ZSTD),
    "a frame with more behind": (Told((ONE, packed(b"more"))), _LONGER),
    "not encoded at all": (Told((honest.ARTIFACT,)), _NO_ZSTD),
    "endless empty frames": (Told((ONE, *(packed(b"") * 1000,) * 20)), "is longer than the art"),
    "another encoding": (Told((ONE,), encoding="br"), "that was not asked for: br"),
    "an encoding in capitals": (Told((ONE,), encoding="ZSTD"), "that was not asked for: ZSTD"),
    "inline and chunks": (
        Told((honest.ARTIFACT,), encoding="", inline=honest.ARTIFACT),
        "is in its header, and more bytes follow",
    ),
    "inline too short": (Told(encoding="", inline=honest.ARTIFACT[:-1]), "ended after 11999"),
    "inline too long": (Told(encoding="", inline=honest.ARTIFACT + b"x"), _LONGER),
    "inline with other bytes": (Told(encoding="", inline=b"x" * 12_000), "have the SHA-256"),
    "inline above the limit": (
        Told(encoding="", inline=b"x" * 70_000, fields={"size_bytes": 70_000}),
        "asked for at most 65536 bytes in the header, got 70000",
    ),
    "packed inside the header": (Told(inline=ONE), "ended after"),
}
