"""An engine's native code for one module: its bytes and all that is known about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from wasmkiln._files import write_aside
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.v1.types_pb2 import ArtifactHeader

if TYPE_CHECKING:
    import builtins
    import os


@dataclass(frozen=True)
class Artifact:
    """The answer of a compile.

    `bytes` is what the engine deserializes, empty when the call asked for the header alone;
    `header` is the contract's ArtifactHeader.
    """

    bytes: builtins.bytes = field(repr=False)
    header: ArtifactHeader = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"<Artifact of {self.header.module_sha256[:12]}… for {self.header.engine.id} "
            f"on {self.header.target} {self.header.cpu}, {len(self.bytes)} bytes>"
        )

    def intact(self) -> bool:
        """Whether the bytes are those that the header describes."""
        return hashlib.sha256(self.bytes).hexdigest() == self.header.artifact_sha256

    def save(self, path: str | os.PathLike[str], *, header: bool = True) -> Path:
        """Writes the bytes to `path` and, with `header`, the header to `<path>.json`.

        Each file is written aside and renamed, so that a reader sees the old or the new one
        and never a part; its mode follows the umask. Returns the path. Raises OSError.
        """
        target = Path(path)
        if header:
            text = json_format.MessageToJson(
                self.header, preserving_proto_field_name=True, sort_keys=True
            )
            write_aside(_header_path(target), text.encode() + b"\n")
        write_aside(target, self.bytes)
        return target

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Reads what `save` wrote, and verifies it.

        Raises OSError when a file can't be read, and ArtifactMismatch when the bytes aren't
        those of the header, or the header is none.
        """
        source = Path(path)
        header = ArtifactHeader()
        text = _header_path(source).read_bytes()
        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise ArtifactMismatch(f"{_header_path(source)} is no artifact's header") from error
        artifact = cls(source.read_bytes(), header)
        if not artifact.intact():
            raise ArtifactMismatch(f"{source} doesn't hold the artifact that its header describes")
        return artifact

    def engine(self) -> Any:
        """The engine that `load` uses when it is given none.

        A `wasmtime.Engine` set as the artifact needs it, or a `wasmer.Store`. It is made
        once per process for each set of settings, so that a `wasmtime.Store(artifact.engine())`
        fits every module loaded with those. Raises EngineNotInstalled or IncompatibleEngine.
        """
        from wasmkiln.loading import host_engine

        return host_engine(self.header)

    def load(self, engine: Any = None) -> Any:
        """Loads the artifact into the engine of this interpreter, without compiling.

        Returns a `wasmtime.Module`, a `wasmtime.component.Component` or a `wasmer.Module`.
        `engine` is a `wasmtime.Engine` or a `wasmer.Store`; without one, it is `engine()`.

        Loading an artifact is running its code: load only what comes from a daemon that you
        trust. Raises EngineNotInstalled, and IncompatibleEngine when the engine's version,
        its settings or this machine can't take the artifact, or when the bytes are no longer
        those of the header; nearly all of that is found before the engine sees a byte.
        """
        from wasmkiln.loading import load_artifact

        return load_artifact(self, engine)


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
