"""Puts an artifact together from a Compile stream, verifies it, and reports progress."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from wasmkiln import _header_fields, _untrusted
from wasmkiln._compression import Decoder
from wasmkiln._untrusted import quoted
from wasmkiln.artifact import Artifact
from wasmkiln.errors import ArtifactMismatch, ArtifactTooLarge
from wasmkiln.trusted_keys import TrustedKeys

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln._header_fields import Call
    from wasmkiln.v1.module_service_pb2 import CompileResponse
    from wasmkiln.v1.types_pb2 import ArtifactHeader

    ProgressCallback = Callable[["Progress"], None]

# A newer daemon may send parts that this client does not know, but not endlessly.
_MAX_EMPTY_MESSAGES = 100
# Room made for an artifact before it is here: more grows as it comes.
_MOST_BYTES_AT_ONCE = 64 * 1024 * 1024


class Phase(Enum):
    """What a compile is doing."""

    ASKING = "asking"
    """The client asks by digest: the daemon looks in its tiers, or compiles a module it has."""
    UPLOADING = "uploading"
    """The client sends the module, and the daemon compiles it; gRPC does not tell them apart."""
    DOWNLOADING = "downloading"
    """The header has arrived; the artifact follows."""


@dataclass(frozen=True)
class Progress:
    """A moment of a compile: `done_bytes` of `total_bytes` (0 when there is no number)."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0


class Assembly:
    """The artifact of one Compile stream: `add` each message, then `finish`.

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
        self._on_progress = on_progress
        self._header: ArtifactHeader | None = None
        self._decoder: Decoder | None = None
        self._refused = ""
        self._file: io.BytesIO | None = None
        self._size_bytes = self._received_bytes = 0
        self._empty_messages = 0
        self._digest = hashlib.sha256()

    def add(self, message: CompileResponse | memoryview) -> None:
        """Take the next message, or the chunk that is all of it.

        Raise ArtifactMismatch when it contradicts the call or the header, and ArtifactTooLarge
        when the header announces more than `max_bytes`.
        """
        if isinstance(message, memoryview):
            self._chunk(message)
        elif message.WhichOneof("part") == "header":
            self._begin(message.header)
        elif message.chunk:
            self._chunk(message.chunk)
        else:
            self._empty_messages += 1
            if self._empty_messages > _MAX_EMPTY_MESSAGES:
                raise ArtifactMismatch("the daemon sent too many empty messages")

    def finish(self) -> Artifact:
        """Return the verified artifact.

        Raise ArtifactMismatch when bytes are missing or wrong, and AttestationInvalid when
        there are trusted keys and none of them signed it.
        """
        header = self._header
        if header is None:
            raise ArtifactMismatch("the daemon's answer ended without a header")
        # A file is checked by whoever opens it; no bytes came with its name.
        if not self._call.request.omit_artifact and not header.HasField("host_file"):
            self._check_bytes(header)
        artifact = Artifact(
            self._file.getvalue() if self._file else b"",
            header,
            self._trusted_keys,
            requested_settings=dict(self._call.request.settings),
        )
        # Verify before the caller has it: a saved file may be loaded by others without a check.
        if self._trusted_keys:
            artifact.verify_header(self._trusted_keys)
        return artifact

    def _check_bytes(self, header: ArtifactHeader) -> None:
        if self._decoder is not None and self._received_bytes == header.size_bytes:
            self._decoder.finish()
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
        if self._header is not None:
            raise ArtifactMismatch("the daemon's answer has two headers")
        # A signature binds the artifact to its header, not to what this call asked for.
        _header_fields.check(self._call, header)
        if not self._call.request.omit_artifact and header.size_bytes > self._max_bytes:
            raise ArtifactTooLarge(
                f"the artifact has {header.size_bytes:,} bytes, above this client's limit of "
                f"{self._max_bytes:,}: raise max_artifact_bytes, --max-artifact-bytes or "
                "WASMKILN_MAX_ARTIFACT_BYTES",
                metadata={
                    "size_bytes": str(header.size_bytes),
                    "limit_bytes": str(self._max_bytes),
                },
            )
        # Both are only shown. Drop invalid ones: protobuf's conversions and its JSON would raise.
        for name in ("queue_time", "compile_time"):
            if not _untrusted.is_valid(getattr(header, name)):
                header.ClearField(name)
        self._header, self._size_bytes = header, header.size_bytes
        self._report()
        inline, encoding = header.inline_artifact, header.content_encoding
        # They say how the bytes came; what the caller gets is the artifact itself.
        header.ClearField("inline_artifact")
        header.ClearField("content_encoding")
        if self._call.request.omit_artifact:
            self._refused = "asked for the header alone, got the artifact's bytes too"
        elif header.HasField("host_file"):
            self._refused = "the daemon named a file and sent bytes too"
        if inline:
            self._chunk(inline)
            self._refused = "the artifact is in its header, and more bytes follow"
        elif encoding:
            self._decoder = Decoder(encoding, header.size_bytes, self._append)

    def _chunk(self, chunk: bytes | memoryview) -> None:
        if self._header is None:
            raise ArtifactMismatch("the daemon's answer has bytes before its header")
        if self._refused:
            raise ArtifactMismatch(self._refused)
        if self._decoder is not None:
            self._decoder.feed(chunk)
        else:
            self._append(chunk)

    def _append(self, chunk: bytes | memoryview) -> None:
        if self._received_bytes + len(chunk) > self._size_bytes:
            raise ArtifactMismatch(
                f"the artifact is longer than the {self._size_bytes} bytes of its header"
            )
        self._received_bytes += len(chunk)
        if self._file is None:
            # Written from the beginning: each message can go at once, gRPC uses its memory for
            # the next, and getvalue copies nothing (on CPython).
            self._file = io.BytesIO(bytes(min(self._size_bytes, _MOST_BYTES_AT_ONCE)))
        self._file.write(chunk)
        self._digest.update(chunk)
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(Phase.DOWNLOADING, self._received_bytes, self._size_bytes))
