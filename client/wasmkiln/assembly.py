"""An artifact that arrives: put together from the messages of a call, and checked on the way.

`Assembly` hands out nothing that is not what the call asked for, byte for byte as the header says,
and signed where there are trusted keys. Nothing of a zstd stream is trusted: the `Decoder` never
makes more than the header's `size_bytes`, and never needs more than a window of 8 MiB; whatever
else a stream is, it is an ArtifactMismatch.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from wasmkiln._header_fields import Call, check
from wasmkiln._untrusted import is_valid, quoted
from wasmkiln.artifact import Artifact
from wasmkiln.attestation import TrustedKeys, verify_header
from wasmkiln.errors import ArtifactMismatch, ArtifactTooLarge
from wasmkiln.loading import check_runs
from wasmkiln.rpc import parsed
from wasmkiln.v1.module_service_pb2 import CompileResponse
from wasmkiln.v1.types_pb2 import ORIGIN_COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln.v1.types_pb2 import ArtifactHeader

    ProgressCallback = Callable[["Progress"], None]

ZSTD = "zstd"

# What RFC 8878 asks every decoder to support; a daemon's frames need 512 KiB.
_WINDOW_BYTES = 8 * 1024 * 1024
# Made at a time: as much as a daemon packs into one frame.
_OUTPUT_BYTES = 512 * 1024
# zstd adds less than 1/128 to bytes that it cannot compress, and each frame a few bytes.
_MOST_ADDED = 64
_ADDED_BYTES = 64 * 1024
# CompileResponse.chunk on the wire: field 2, length-delimited. A message has less than 2 GiB.
_CHUNK_TAG = b"\x12"
_MAX_LENGTH_BYTES = 5


class Phase(Enum):
    """What a compile is doing."""

    ASKING = "asking"
    """The client asks by digest: the daemon looks in its tiers, or compiles a module it has."""
    UPLOADING = "uploading"
    """The client sends the module. In one message, gRPC does not tell how far it is."""
    DOWNLOADING = "downloading"
    """The header has arrived; the artifact follows."""


@dataclass(frozen=True)
class Progress:
    """A moment of a compile: `done_bytes` of `total_bytes` (0 when there is no number)."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0


class Assembly:
    """The artifact of one Compile stream: `begin`, `add` each message, `finish`.

    If the stream is cut, what has come stays: `begin` again, for a stream that brings the rest.
    `add` hashes the chunks as they arrive, so that `finish` has little left to do, and refuses
    the first byte too many.
    """

    def __init__(
        self,
        call: Call,
        *,
        max_bytes: int,
        on_progress: ProgressCallback | None = None,
        trusted_keys: TrustedKeys | None = None,
    ) -> None:
        self._call = call
        self._max_bytes = max_bytes
        self._trusted_keys = trusted_keys or TrustedKeys()
        self._on_progress = on_progress or (lambda _: None)
        self.moved_bytes = 0
        """The most bytes of an artifact that it ever had."""
        self._made_sha256 = ""
        self._start_over()

    def _start_over(self) -> None:
        # Each message can go at once, gRPC uses its memory for the next, and getvalue copies
        # nothing (on CPython).
        self._file = io.BytesIO()
        self._digest = hashlib.sha256()
        self._received_bytes = self._size_bytes = 0
        self._artifact_sha256 = ""

    def begin(self) -> None:
        """Begin a call, whose request asks for what is missing after those that were cut."""
        request = self._call.request
        if request.sha256:
            self._on_progress(Progress(Phase.ASKING))
        if request.skip_cache_lookup and self._artifact_sha256:
            # It was compiled for this call, which was cut: now the tiers should have it.
            self._made_sha256, request.skip_cache_lookup = self._artifact_sha256, False
        request.offset_bytes = self._received_bytes
        request.artifact_sha256 = self._artifact_sha256 if self._received_bytes else ""
        self._header: ArtifactHeader | None = None
        self._decoder: Decoder | None = None
        self._refused = "the daemon's answer has bytes before its header"

    def add(self, wire: bytes) -> None:
        """Take the next message, without a copy if it is a chunk and nothing else.

        Raise ArtifactMismatch when it contradicts the call or the header, and ArtifactTooLarge
        when the header announces more than `max_bytes`; UnexpectedAnswer when it is no message.
        """
        if chunk := only_chunk(wire):
            self._chunk(chunk)
            return
        message = parsed(CompileResponse, wire)
        if message.WhichOneof("part") == "header":
            self._begin(message.header)
        elif message.chunk:  # a newer daemon may send parts that this client does not know
            self._chunk(message.chunk)

    def finish(self) -> Artifact:
        """Return the verified artifact.

        Raise ArtifactMismatch when bytes are missing or wrong, and AttestationInvalid when
        there are trusted keys and none of them signed it.
        """
        header, request = self._header, self._call.request
        if header is None:
            raise ArtifactMismatch("the daemon's answer ended without a header")
        # A file is checked by whoever opens it; no bytes came with its name.
        if not (request.omit_artifact or header.HasField("host_file")):
            self._check_bytes(header)
        # Verify before the caller has it: a saved file may be loaded by others without a check.
        if self._trusted_keys:
            verify_header(header, self._trusted_keys)
        return Artifact(self._file.getvalue(), header, self._trusted_keys, self._call.settings)

    def _check_bytes(self, header: ArtifactHeader) -> None:
        if self._received_bytes != header.size_bytes:
            raise ArtifactMismatch(
                f"the artifact ended after {self._received_bytes} of {header.size_bytes} bytes"
            )
        actual = self._digest.hexdigest()
        if actual != header.artifact_sha256:
            expected = quoted(header.artifact_sha256)
            raise ArtifactMismatch(
                f"the artifact's bytes have the SHA-256 {actual}, its header says {expected}",
                metadata={"expected_sha256": expected, "actual_sha256": actual},
            )

    def _begin(self, header: ArtifactHeader) -> None:
        request, limit_bytes = self._call.request, self._max_bytes
        if self._header is not None:
            raise ArtifactMismatch("the daemon's answer has two headers")
        # A signature binds the artifact to its header, not to what this call asked for.
        check(self._call, header)
        if self._call.must_run:
            check_runs(header)
        if not request.omit_artifact and header.size_bytes > limit_bytes:
            raise ArtifactTooLarge(
                f"the artifact has {header.size_bytes:,} bytes, above this client's limit of "
                f"{limit_bytes:,}: raise max_artifact_bytes, --max-artifact-bytes or "
                "WASMKILN_MAX_ARTIFACT_BYTES",
                metadata={"size_bytes": f"{header.size_bytes}", "limit_bytes": f"{limit_bytes}"},
            )
        # Both are only shown. Drop invalid ones: protobuf's conversions and its JSON would raise.
        for name in ("queue_time", "compile_time"):
            if not is_valid(getattr(header, name)):
                header.ClearField(name)
        inline, encoding = header.inline_artifact, header.content_encoding
        artifact_sha256, size_bytes = header.artifact_sha256, header.size_bytes
        most = request.inline_limit_bytes
        if self._made_sha256 not in ("", artifact_sha256) and header.origin != ORIGIN_COMPILED:
            self._start_over()
            self._made_sha256, request.skip_cache_lookup = "", True
            why = "the daemon has lost what it compiled for this call"
            raise ArtifactMismatch(why, retry_after_s=0.0)
        if header.HasField("host_file") and not request.accept_host_file:
            raise ArtifactMismatch("asked for the artifact's bytes, got a file's name")
        if len(inline) > most:
            raise ArtifactMismatch(
                f"asked for at most {most} bytes in the header, got {len(inline)}"
            )
        if encoding and encoding not in request.accept_encodings:
            what = f"got bytes in an encoding that was not asked for: {quoted(encoding)}"
            raise ArtifactMismatch(what)
        kept = self._received_bytes, self._artifact_sha256, self._size_bytes
        if not header.offset_bytes or header.HasField("host_file"):
            self._start_over()
        elif inline or encoding or kept != (header.offset_bytes, artifact_sha256, size_bytes):
            raise ArtifactMismatch(
                f"asked for what follows on {kept[0]:,} bytes of an artifact, got something else"
            )
        self._header, self._refused = header, ""
        self._artifact_sha256, self._size_bytes = artifact_sha256, size_bytes
        self._report()
        # They say how the bytes came; what the caller gets is the artifact itself.
        header.ClearField("inline_artifact")
        header.ClearField("content_encoding")
        header.ClearField("offset_bytes")
        if request.omit_artifact:
            self._refused = "asked for the header alone, got the artifact's bytes too"
        elif header.HasField("host_file"):
            self._refused = "the daemon named a file and sent bytes too"
        if inline:
            self._chunk(inline)
            self._refused = "the artifact is in its header, and more bytes follow"
        elif encoding:
            self._decoder = Decoder(encoding, header.size_bytes, self._append)

    def _chunk(self, chunk: bytes | memoryview) -> None:
        if self._refused:
            raise ArtifactMismatch(self._refused)
        (self._decoder.feed if self._decoder else self._append)(chunk)

    def _append(self, chunk: bytes | memoryview) -> None:
        if self._received_bytes + len(chunk) > self._size_bytes:
            raise ArtifactMismatch(
                f"the artifact is longer than the {self._size_bytes} bytes of its header"
            )
        self._received_bytes += len(chunk)
        self.moved_bytes = max(self.moved_bytes, self._received_bytes)
        self._file.write(chunk)
        self._digest.update(chunk)
        self._report()

    def _report(self) -> None:
        self._on_progress(Progress(Phase.DOWNLOADING, self._received_bytes, self._size_bytes))


def only_chunk(wire: bytes) -> memoryview | None:
    """Return the chunk of a CompileResponse that has nothing else; None for any other message.

    Such a message costs nothing to parse. protobuf would copy the bytes twice.
    """
    if wire[:1] != _CHUNK_TAG:
        return None
    length = shift = 0
    for at in range(1, min(len(wire), 1 + _MAX_LENGTH_BYTES)):
        length |= (wire[at] & 0x7F) << shift
        shift += 7
        if wire[at] < 0x80:
            chunk = memoryview(wire)[at + 1 :]
            return chunk if len(chunk) == length else None
    return None


def package() -> Any:
    """Return the module `zstandard`, or None where it is not installed."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


class Decoder:
    """Decodes the chunks of one artifact, of which each may begin and end anywhere in a frame.

    `take` gets the decoded bytes, piece by piece; what it raises ends the decoding. Whether the
    last frame is complete, the digest of all bytes tells as far as it matters.
    """

    def __init__(self, encoding: str, size_bytes: int, take: Callable[[bytes], None]) -> None:
        zstandard = package()
        if encoding != ZSTD or zstandard is None:
            raise ArtifactMismatch(f"cannot decode bytes in the encoding {quoted(encoding)}")
        self._left_bytes = size_bytes + size_bytes // _MOST_ADDED + _ADDED_BYTES
        self._take = take
        self._error: type[Exception] = zstandard.ZstdError
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

    def write(self, piece: bytes) -> int:
        """Take decoded bytes: the library calls this."""
        self._take(piece)
        return len(piece)
