"""Loads an artifact into the engine of this interpreter, or says why that can't be.

Everything that can be known without the engine is checked before it sees a byte: engines
accept many damaged artifacts and crash on others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wasmkiln._untrusted import quoted
from wasmkiln.errors import EngineNotInstalled, IncompatibleEngine
from wasmkiln.loading import machine, with_wasmer, with_wasmtime

if TYPE_CHECKING:
    from typing import Protocol

    from wasmkiln.loading.loadable import Loadable
    from wasmkiln.v1.types_pb2 import ArtifactHeader

    class Loader(Protocol):
        """One engine's way of loading; each module of this package that is in the table."""

        def check_version(self, header: ArtifactHeader) -> None:
            """Raises EngineNotInstalled or IncompatibleEngine."""

        def host_engine(self, artifact: Loadable) -> Any:
            """What the artifact loads into. Raises the same."""

        def deserialize(self, artifact: Loadable, engine: Any) -> Any:
            """The engine's module. Raises IncompatibleEngine."""


_LOADERS: dict[str, Loader] = {"wasmtime": with_wasmtime, "wasmer": with_wasmer}


def host_engine(artifact: Loadable) -> Any:
    """What `Artifact.engine` answers.

    Raises EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
    """
    _verify(artifact)
    loader = _loader(artifact.header)
    loader.check_version(artifact.header)
    return loader.host_engine(artifact)


def load_artifact(artifact: Loadable, engine: Any) -> Any:
    """What `Artifact.load` answers.

    Raises EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
    """
    header = artifact.header
    loader = _loader(header)
    if not artifact.bytes:
        raise IncompatibleEngine("the artifact has no bytes: it was asked for without them")
    if not artifact.intact():
        raise IncompatibleEngine("the artifact's bytes are no longer those of its header")
    _verify(artifact)
    machine.check(header.target, header.cpu)
    loader.check_version(header)
    return loader.deserialize(artifact, loader.host_engine(artifact) if engine is None else engine)


def _verify(artifact: Loadable) -> None:
    """Without trusted keys the header's word has to do: what it says of the call was compared."""
    if artifact.trusted_keys:
        artifact.verify_header(artifact.trusted_keys)


def _loader(header: ArtifactHeader) -> Loader:
    loader = _LOADERS.get(header.engine.name)
    if loader is None:
        name = quoted(header.engine.name) or "an unnamed engine"
        raise EngineNotInstalled(
            f"this client can't load artifacts of {name}; it knows {' and '.join(sorted(_LOADERS))}"
        )
    return loader
