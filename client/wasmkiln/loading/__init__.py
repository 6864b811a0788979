"""Load an artifact into the engine of this interpreter, or raise the reason why not.

Engines accept many damaged artifacts and crash on others: of 30 with a few random
bytes changed, wasmer loaded 10 and wasmtime 16. So everything that can be
checked without the engine is checked before it sees a byte, in this order:

    1. the artifact has bytes, and they have the SHA-256 of its header
    2. with trusted keys: one of them signed the header (artifact.verify_header)
    3. machine        this machine has the target's architecture and system, and the CPU
                      the features of the artifact's cpu level
    4. with_wasmer,   the installed engine is one that takes artifacts of this version: wasmer
       with_wasmtime  of the same version only, wasmtime of the same major version
    5. the settings that differ from the engine's default exist here too; then deserialize, or
       map the artifact's file

`host_store` checks files by rules of its own, and begins with step 3. Each engine is a module
with the functions of the protocol Loader below, and a row in the table _LOADERS; an engine is
imported only when an artifact of it is loaded. `loadable` says what this package needs of an
artifact, so that it does not import the class Artifact; `installed` finds an engine's version;
`chosen` is about the engine of a call that names none, or of a module that was loaded.

Raises EngineNotInstalled where the engine cannot be imported, IncompatibleEngine where the
artifact does not fit, and AttestationInvalid where no trusted key signed it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wasmkiln._untrusted import quoted
from wasmkiln.errors import EngineNotInstalled, IncompatibleEngine
from wasmkiln.host_store.refused import Refused
from wasmkiln.loading import chosen, machine, with_wasmer, with_wasmtime
from wasmkiln.loading.installed import installed
from wasmkiln.loading.loadable import Mapped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from wasmkiln._saved_file import SavedFile
    from wasmkiln.loading.loadable import Loadable, Verifiable
    from wasmkiln.v1.types_pb2 import ArtifactHeader, Kind

    class Loader(Protocol):
        """How one engine loads: the functions of a module in the table below."""

        REFUSES_OTHER_VERSIONS: bool

        def check_version(self, header: ArtifactHeader) -> None:
            """Raise EngineNotInstalled, or IncompatibleEngine for another version."""

        def host_engine(self, artifact: Loadable) -> Any:
            """Return what the artifact loads into. Raise the same."""

        def deserialize(self, artifact: Loadable, engine: Any) -> Any:
            """Return the engine's module. Raise IncompatibleEngine."""

        def compile_here(
            self, wasm: bytes, kind: Kind, settings: Mapping[str, str], engine: Any
        ) -> tuple[Any, Any]:
            """Compile in this process, for `engine` or the one with these settings.

            Return the module and the engine. Raise EngineNotInstalled, IncompatibleEngine or
            ModuleInvalid.
            """


_ADVICE = "artifact.engine() is an engine that fits"

_LOADERS: dict[str, Loader] = {"wasmtime": with_wasmtime, "wasmer": with_wasmer}


def host_engine(artifact: Verifiable) -> Any:
    """Return the engine for `Artifact.engine`.

    Raise EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
    """
    _verify(artifact)
    loader = _loader(artifact.header.engine.name)
    loader.check_version(artifact.header)
    return loader.host_engine(artifact)


def load_artifact(artifact: Verifiable, engine: Any) -> Any:
    """Return the module for `Artifact.load`.

    Raise EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
    """
    _loader(artifact.header.engine.name)
    if not artifact.bytes:
        raise IncompatibleEngine("the artifact has no bytes: compile it without omit_artifact")
    if not artifact.intact():
        raise IncompatibleEngine("the artifact's bytes are no longer those of its header")
    _verify(artifact)
    if artifact.file is not None:
        with suppress(Refused):
            return _load_mapped(artifact, artifact.file, engine)
    return load_verified(artifact, engine, advice=_ADVICE)


def _load_mapped(artifact: Loadable, file: SavedFile, engine: Any) -> Any:
    """Load the file that the artifact's verified bytes were read from. Raise Refused."""
    descriptor = file.open()
    try:
        module = load_verified(Mapped(artifact, descriptor), engine, advice=_ADVICE)
        if not file.is_unchanged(descriptor):
            raise Refused("the file changed while it was loaded")
    finally:
        os.close(descriptor)
    return module


def load_verified(
    artifact: Loadable, engine: Any, *, advice: str = "", explain: bool = True
) -> Any:
    """Return the module of an artifact whose bytes and signature need no check.

    Without `explain`, leave the version to an engine that compares it itself: to find out which
    one is installed takes a tenth of a load. Raise EngineNotInstalled, or IncompatibleEngine,
    with the `advice` if the caller's own `engine` refuses the artifact.
    """
    header = artifact.header
    loader = _loader(header.engine.name)
    machine.check(header.target, header.cpu)
    if explain or not loader.REFUSES_OTHER_VERSIONS or header.engine.name not in sys.modules:
        loader.check_version(header)
    own = engine is not None
    if not own:
        engine = loader.host_engine(artifact)
    try:
        module = loader.deserialize(artifact, engine)
    except IncompatibleEngine as error:
        if not (own and advice):
            raise
        raise IncompatibleEngine(f"{error.message}; {advice}", metadata=error.metadata) from error
    chosen.remember(module, engine)
    return module


def compile_here(
    wasm: bytes, kind: Kind, named: str, settings: Mapping[str, str], engine: Any
) -> Any:
    """Compile a module in this process, without any daemon, with the engine of a name or an id.

    Raise EngineNotInstalled, ModuleInvalid, or IncompatibleEngine, also for another version than
    that of the id.
    """
    name, _, version = named.partition("-")
    loader = _loader(name)
    with suppress(ImportError):  # the loader says so better
        if version and version != installed(name):
            raise IncompatibleEngine(
                f"cannot compile for {quoted(named)} here: {name} {installed(name)} is installed",
                metadata={"engine": named, "installed": installed(name)},
            )
    module, engine = loader.compile_here(wasm, kind, settings, engine)
    chosen.remember(module, engine)
    return module


def _verify(artifact: Verifiable) -> None:
    """Verify the header by the trusted keys. Without keys, `compile` only compared it."""
    if artifact.trusted_keys:
        artifact.verify_header(artifact.trusted_keys)


def _loader(engine: str) -> Loader:
    loader = _LOADERS.get(engine)
    if loader is None:
        name = quoted(engine) or "an unnamed engine"
        raise EngineNotInstalled(
            f"cannot load artifacts of {name}: this client knows {' and '.join(sorted(_LOADERS))}"
        )
    return loader
