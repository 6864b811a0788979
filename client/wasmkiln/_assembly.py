"""Puts an artifact together from the messages of a Compile stream, and verifies it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from wasmkiln._progress import Phase, Progress
from wasmkiln.artifact import Artifact
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.trusted_keys import TrustedKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wasmkiln._progress import ProgressCallback
    from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
    from wasmkiln.v1.types_pb2 import ArtifactHeader


class Assembly:
    """One stream's worth of messages: `add` each, then `finish`.

    It hashes as the chunks arrive, so that verifying costs nearly nothing after the last
    one, and stops at the first byte too many.
    """

    def __init__(
        self,
        module_sha256: str,
        asked: CompileRequest,
        *,
        on_progress: ProgressCallback | None = None,
        trusted_keys: TrustedKeys | None = None,
    ) -> None:
        self._module_sha256 = module_sha256
        self._asked = asked
        self._trusted_keys = trusted_keys or TrustedKeys()
        self._on_progress = on_progress
        self._header: ArtifactHeader | None = None
        self._chunks: list[bytes] = []
        self._received_bytes = 0
        self._digest = hashlib.sha256()

    def add(self, message: CompileResponse) -> None:
        """Takes the next message. Raises ArtifactMismatch when it can't be right."""
        if message.WhichOneof("part") == "header":
            self._begin(message.header)
        else:
            self._append(message.chunk)

    def finish(self) -> Artifact:
        """The verified artifact.

        Raises ArtifactMismatch when anything is missing or wrong, and AttestationInvalid when
        there are trusted keys and none of them vouches for it.
        """
        header = self._header
        if header is None:
            raise ArtifactMismatch("the daemon's answer ended before its header")
        if self._asked.omit_artifact:
            return self._attested(Artifact(b"", header, self._trusted_keys))
        if self._received_bytes != header.size_bytes:
            raise ArtifactMismatch(
                f"the artifact ended after {self._received_bytes} of {header.size_bytes} bytes"
            )
        actual = self._digest.hexdigest()
        if actual != header.artifact_sha256:
            raise ArtifactMismatch(
                f"the artifact's bytes have the SHA-256 {actual}, its header says "
                f"{header.artifact_sha256}",
                metadata={"expected_sha256": header.artifact_sha256, "actual_sha256": actual},
            )
        return self._attested(Artifact(b"".join(self._chunks), header, self._trusted_keys))

    def _attested(self, artifact: Artifact) -> Artifact:
        # Before anybody has it in hand: what is saved to a file is loaded by others.
        if self._trusted_keys:
            artifact.verify_header(self._trusted_keys)
        return artifact

    def _begin(self, header: ArtifactHeader) -> None:
        if self._header is not None:
            raise ArtifactMismatch("the daemon's answer has two headers")
        if header.module_sha256 != self._module_sha256:
            raise ArtifactMismatch(
                f"asked for an artifact of module {self._module_sha256}, got one of "
                f"{header.module_sha256 or 'no module'}"
            )
        # A signature says that it is what it is called, not that it is what this call is for.
        for what, asked, got in _differences(self._asked, header):
            raise ArtifactMismatch(f"asked for {what} {asked}, got {got or 'none'}")
        self._header = header
        self._report()

    def _append(self, chunk: bytes) -> None:
        if self._header is None:
            raise ArtifactMismatch("the daemon's answer has bytes before its header")
        self._received_bytes += len(chunk)
        if self._received_bytes > self._header.size_bytes:
            raise ArtifactMismatch(
                f"the artifact is longer than the {self._header.size_bytes} bytes of its header"
            )
        self._digest.update(chunk)
        self._chunks.append(chunk)
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None and self._header is not None:
            total_bytes = self._header.size_bytes
            self._on_progress(Progress(Phase.DOWNLOADING, self._received_bytes, total_bytes))


def _differences(asked: CompileRequest, header: ArtifactHeader) -> Iterator[tuple[str, str, str]]:
    """What was asked for in words, as it was asked for and as it came, where these differ.

    Of the engine, only what is attested is looked at, which its id is not.
    """
    engine = f"{header.engine.name}-{header.engine.version}"
    if asked.engine and asked.engine not in (header.engine.name, engine):
        yield "engine", asked.engine, engine
    if asked.target and asked.target != header.target:
        yield "target", asked.target, header.target
    if asked.cpu and asked.cpu != header.cpu:
        yield "cpu", asked.cpu, header.cpu
    for name, value in asked.settings.items():
        if value != header.settings.get(name):
            yield f"setting {name}", value, header.settings.get(name, "")
    # What nobody asked for is as the engine has it by default.
    for name, value in header.changed_settings.items():
        if value != asked.settings.get(name):
            yield f"setting {name}", asked.settings.get(name, "as the engine has it"), value
