"""Load an artifact into PyPI's wasmtime."""

from __future__ import annotations

import atexit
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

REFUSES_OTHER_VERSIONS = True

_WINCH = 2  # in wasmtime_strategy_enum of wasmtime/config.h
_COLLECTOR = "collector"


def check_version(header: ArtifactHeader) -> None:
    """Require the same major version; wasmtime itself checks the rest."""
    wanted = header.engine.version
    try:
        import wasmtime  # noqa: F401

        here = installed("wasmtime")
    except (ImportError, OSError) as error:
        raise EngineNotInstalled(
            f"cannot import wasmtime here: pip install 'wasmtime=={wanted}' ({error})",
            metadata={"engine": engine_id(header.engine)},
        ) from error
    if here.split(".")[0] != wanted.split(".")[0]:
        raise IncompatibleEngine(
            f"the artifact was made by wasmtime {wanted}, and wasmtime {here} is installed "
            f"here: ask the daemon for an engine wasmtime-{here.split('.')[0]}.…, "
            f"or pip install 'wasmtime=={wanted}'",
            metadata={"engine": engine_id(header.engine), "installed": here},
        )


def host_engine(artifact: Loadable) -> Any:
    """Return a `wasmtime.Engine` with the artifact's settings, one per process for each set."""
    settings = dict(artifact.header.changed_settings)
    if not artifact.trusted_keys:
        # An unsigned header may leave out a setting that the call asked for: apply both.
        settings = {**artifact.requested_settings, **settings}
    return _engine(tuple(sorted(settings.items())))


@cache  # a module and its Store have to share their Engine
def _engine(changed_settings: tuple[tuple[str, str], ...]) -> Any:
    import wasmtime

    config = wasmtime.Config()
    for name, text in changed_settings:
        # Properties only: the names come from a daemon.
        if name != _COLLECTOR and not isinstance(getattr(wasmtime.Config, name, None), property):
            raise IncompatibleEngine(
                f"cannot make an engine with {name}={text}: the wasmtime installed here does not "
                "have this setting",
                metadata={"setting": name},
            )
        try:
            _apply(config, name, text)
        except Exception as error:
            raise IncompatibleEngine(
                f"cannot make an engine with {name}={text}: the wasmtime installed here refuses "
                f"it: {error}",
                metadata={"setting": name},
            ) from error
    return wasmtime.Engine(config)


# wasmtime's own destructors fail once Python has taken its modules apart.
atexit.register(_engine.cache_clear)


def _apply(config: Any, name: str, text: str) -> None:
    if (name, text) == ("strategy", "winch"):
        # The package's own setter refuses it, though its library has it.
        from wasmtime import _bindings

        _bindings.wasmtime_config_strategy_set(config.ptr(), _WINCH)
    elif name == _COLLECTOR:
        # The package's library has one collector, and compares it when it loads an artifact.
        if text == "none":
            config.gc_support = False
    else:
        setattr(config, name, _value(text))


def _value(text: str) -> bool | int | str:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if text.isdecimal() else text


def deserialize(artifact: Loadable, engine: Any) -> Any:
    """Return a `wasmtime.Module` or a `wasmtime.component.Component`."""
    import wasmtime

    if not isinstance(engine, wasmtime.Engine):
        raise IncompatibleEngine(
            f"the artifact loads into a wasmtime.Engine, not a {type(engine).__name__}"
        )
    header = artifact.header
    if header.kind == KIND_COMPONENT:
        from wasmtime.component import Component as Loaded
    else:
        from wasmtime import Module as Loaded
    try:
        if artifact.descriptor is not None:  # the file may have another name by now, or none
            return Loaded.deserialize_file(engine, f"/proc/self/fd/{artifact.descriptor}")
        return Loaded.deserialize(engine, artifact.bytes)
    except wasmtime.WasmtimeError as error:
        settings = ", ".join(f"{k}={v}" for k, v in sorted(header.changed_settings.items()))
        raise IncompatibleEngine(
            f"wasmtime {installed('wasmtime')} refuses the artifact of "
            f"{engine_id(header.engine)}, made with {settings or 'default settings'}: "
            f"{' '.join(str(error).split())}",
            metadata=dict(header.changed_settings),
        ) from error


def compile_here(
    wasm: bytes, kind: Kind, settings: Mapping[str, str], engine: Any
) -> tuple[Any, Any]:
    """Compile in this process. Return the module and its engine.

    Raise EngineNotInstalled, IncompatibleEngine or ModuleInvalid.
    """
    try:
        import wasmtime
    except (ImportError, OSError) as error:
        raise EngineNotInstalled(f"cannot import wasmtime here: {error}") from error

    if kind == KIND_COMPONENT:
        from wasmtime.component import Component as Compiled
    else:
        from wasmtime import Module as Compiled
    if engine is None:
        engine = _engine(tuple(sorted(settings.items())))
    try:
        return Compiled(engine, wasm), engine
    except wasmtime.WasmtimeError as error:
        raise ModuleInvalid(
            f"wasmtime {installed('wasmtime')} cannot compile the module here: "
            f"{' '.join(str(error).split())}"
        ) from error
