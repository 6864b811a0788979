"""zstd on the wire: how to decode what a daemon sends.

Nothing of a stream is trusted. The decoder never makes more than the header's `size_bytes`, and
never needs more than a window of 8 MiB; whatever else a stream is, it is an ArtifactMismatch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wasmkiln._untrusted import quoted
from wasmkiln.errors import ArtifactMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

ZSTD = "zstd"

# What RFC 8878 asks every decoder to support; a daemon's frames need 512 KiB.
_WINDOW_BYTES = 8 * 1024 * 1024
# Made at a time: as much as a daemon packs into one frame.
_OUTPUT_BYTES = 512 * 1024
# zstd adds less than 1/128 to bytes that it cannot compress, and each frame a few bytes.
_MOST_ADDED = 64
_ADDED_BYTES = 64 * 1024


def package() -> Any:
    """Return the module `zstandard`, or None where it is not installed."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


class Decoder:
    """Decodes the chunks of one artifact: `feed` each, then `finish`.

    A chunk may begin and end anywhere in a frame. `take` gets the decoded bytes, piece by
    piece; what it raises ends the decoding.
    """

    def __init__(self, encoding: str, size_bytes: int, take: Callable[[bytes], None]) -> None:
        zstandard = package()
        if encoding != ZSTD or zstandard is None:
            raise ArtifactMismatch(f"cannot decode bytes in the encoding {quoted(encoding)}")
        self._left_bytes = size_bytes + size_bytes // _MOST_ADDED + _ADDED_BYTES
        self._take = take
        self._end = b""
        self._error: type[Exception] = zstandard.ZstdError
        self._mark = zstandard.ZstdCompressor().compress(b"\0")
        self._ended = False
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        self._writer = decompressor.stream_writer(self, write_size=_OUTPUT_BYTES)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Decode the next chunk. Raise ArtifactMismatch."""
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise ArtifactMismatch("the encoded artifact is longer than the artifact itself")
        try:
            self._writer.write(chunk)
        except self._error as error:
            raise ArtifactMismatch(
                f"cannot decode the artifact as zstd: {quoted(str(error))}"
            ) from None

    def finish(self) -> None:
        """Raise ArtifactMismatch unless the last frame is complete, with nothing behind it."""
        # The library does not tell whether a frame has ended. A frame of our own that follows
        # is decoded as such only if it has.
        self._ended = True
        try:
            self._writer.write(self._mark)
        except self._error:
            self._end = b""
        if self._end != b"\0":
            raise ArtifactMismatch("the encoded artifact ends within a zstd frame")

    def write(self, piece: bytes) -> int:
        """Take decoded bytes: the library calls this."""
        if self._ended:
            self._end += piece[:2]
        else:
            self._take(piece)
        return len(piece)
