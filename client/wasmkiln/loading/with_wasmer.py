"""Load an artifact into PyPI's wasmer, which has wheels for CPython 3.7 to 3.10 only."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from wasmkiln._header_fields import engine_id
from wasmkiln.errors import EngineNotInstalled, IncompatibleEngine

if TYPE_CHECKING:
    from wasmkiln.loading.loadable import Loadable
    from wasmkiln.v1.types_pb2 import ArtifactHeader


def check_version(header: ArtifactHeader) -> None:
    """Require the same version exactly: wasmer itself does not compare versions."""
    wanted = header.engine.version
    try:
        import wasmer  # noqa: F401  On other Pythons this is a stub that raises ImportError.

        installed = version("wasmer")
    except (ImportError, PackageNotFoundError) as error:
        raise EngineNotInstalled(
            f"cannot import wasmer here: it needs CPython 3.10 or older and "
            f"pip install 'wasmer=={wanted}' ({error})",
            metadata={"engine": engine_id(header.engine)},
        ) from error
    if installed != wanted:
        raise IncompatibleEngine(
            f"the artifact was made by wasmer {wanted}, and wasmer {installed} is installed here",
            metadata={"engine": engine_id(header.engine), "installed": installed},
        )


@cache  # a module and what it imports have to share their Store
def _store() -> Any:
    import wasmer

    try:
        from wasmer_compiler_cranelift import Compiler
    except ImportError:  # loading needs no compiler
        return wasmer.Store(wasmer.engine.Universal())
    return wasmer.Store(wasmer.engine.Universal(Compiler))


def host_engine(artifact: Loadable) -> Any:
    """Return the process's `wasmer.Store`."""
    return _store()


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
            f"wasmer {version('wasmer')} refuses the artifact: {' '.join(str(error).split())}",
            metadata={"engine": engine_id(artifact.header.engine)},
        ) from error
