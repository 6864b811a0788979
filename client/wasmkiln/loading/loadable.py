"""The part of an artifact that loading needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import builtins
    from collections.abc import Mapping

    from wasmkiln._saved_file import SavedFile
    from wasmkiln.trusted_keys import TrustedKeys
    from wasmkiln.v1.types_pb2 import ArtifactHeader


class Loadable(Protocol):
    """The part of `wasmkiln.Artifact` that loading uses."""

    @property
    def bytes(self) -> builtins.bytes: ...
    @property
    def descriptor(self) -> int | None:
        """A file that holds the same bytes, and that the engine may map."""
        ...

    @property
    def header(self) -> ArtifactHeader: ...
    @property
    def trusted_keys(self) -> TrustedKeys: ...
    @property
    def requested_settings(self) -> Mapping[str, str]: ...


class Verifiable(Loadable, Protocol):
    """What is needed besides, to verify an artifact before it is loaded."""

    @property
    def file(self) -> SavedFile | None: ...

    def intact(self) -> bool:
        """Return whether the bytes are those that the header describes."""
        ...

    def verify_header(self, trusted_keys: TrustedKeys) -> Any:
        """Raise AttestationInvalid unless one of the keys vouches for the header."""
        ...


class Mapped:
    """An artifact whose bytes an open file holds, too."""

    def __init__(self, artifact: Loadable, descriptor: int) -> None:
        self.descriptor = descriptor
        self.bytes = artifact.bytes
        self.header = artifact.header
        self.trusted_keys = artifact.trusted_keys
        self.requested_settings = artifact.requested_settings
