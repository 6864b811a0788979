"""Load an artifact into PyPI's wasmer, which has wheels for CPython 3.7 to 3.10 only."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from wasmkiln._header_fields import engine_id
from wasmkiln.errors import EngineNotInstalled, IncompatibleEngine, ModuleInvalid
from wasmkiln.loading.installed import installed
from wasmkiln.v1.types_pb2 import KIND_COMPONENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wasmkiln.loading.loadable import Loadable
    from wasmkiln.v1.types_pb2 import ArtifactHeader, Kind

REFUSES_OTHER_VERSIONS = False


def check_version(header: ArtifactHeader) -> None:
    """Require the same version exactly: wasmer itself does not compare versions."""
    wanted = header.engine.version
    try:
        import wasmer  # noqa: F401  On other Pythons this is a stub that raises ImportError.

        here = installed("wasmer")
    except ImportError as error:
        raise EngineNotInstalled(
            f"cannot import wasmer here: it needs CPython 3.10 or older and "
            f"pip install 'wasmer=={wanted}' ({error})",
            metadata={"engine": engine_id(header.engine)},
        ) from error
    if here != wanted:
        raise IncompatibleEngine(
            f"the artifact was made by wasmer {wanted}, and wasmer {here} is installed here",
            metadata={"engine": engine_id(header.engine), "installed": here},
        )


@cache  # a module and what it imports have to share their Store
def host_store() -> Any:
    """Return the `wasmer.Store` of this process."""
    import wasmer

    try:
        from wasmer_compiler_cranelift import Compiler
    except ImportError:  # loading needs no compiler
        return wasmer.Store(wasmer.engine.Universal())
    return wasmer.Store(wasmer.engine.Universal(Compiler))


def host_engine(artifact: Loadable) -> Any:
    """Return the process's `wasmer.Store`."""
    return host_store()


def deserialize(artifact: Loadable, engine: Any) -> Any:
    """Return a `wasmer.Module`."""
    import wasmer

    if not isinstance(engine, wasmer.Store):
        raise IncompatibleEngine(
            f"the artifact loads into a wasmer.Store, not a {type(engine).__name__}"
        )
    try:
        return wasmer.Module.deserialize(engine, artifact.bytes)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise IncompatibleEngine(
            f"wasmer {installed('wasmer')} refuses the artifact: {' '.join(str(error).split())}",
            metadata={"engine": engine_id(artifact.header.engine)},
        ) from error


def compile_here(
    wasm: bytes, kind: Kind, settings: Mapping[str, str], engine: Any
) -> tuple[Any, Any]:
    """Compile in this process. Return the module and its store.

    Raise EngineNotInstalled, IncompatibleEngine or ModuleInvalid.
    """
    try:
        import wasmer
    except ImportError as error:
        raise EngineNotInstalled(f"cannot import wasmer here: {error}") from error
    if settings or kind == KIND_COMPONENT:
        raise IncompatibleEngine("wasmer compiles here core modules with default settings only")
    store = host_store() if engine is None else engine
    try:
        return wasmer.Module(store, wasm), store
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException
        raise ModuleInvalid(
            f"wasmer {installed('wasmer')} cannot compile the module here: "
            f"{' '.join(str(error).split())}"
        ) from error
