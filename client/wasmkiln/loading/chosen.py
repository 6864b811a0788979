"""Which engine a call means that names none, and which one a module was loaded into."""

from __future__ import annotations

import atexit
import sys
import threading
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

from wasmkiln.loading import with_wasmer
from wasmkiln.loading.installed import installed

_lock = threading.Lock()
_engines: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
# wasmtime's own destructors fail once Python has taken its modules apart.
atexit.register(_engines.clear)


def engine_name(into: Any) -> str:
    """Return the name of the engine that `into` belongs to; of an installed one for None.

    Raise TypeError for an object of neither engine.
    """
    wasmtime, wasmer = sys.modules.get("wasmtime"), sys.modules.get("wasmer")
    if into is None:
        return "wasmtime" if wasmtime or find_spec("wasmtime") else "wasmer"
    if wasmtime and isinstance(into, wasmtime.Engine):
        return "wasmtime"
    if wasmer and isinstance(into, wasmer.Store):
        return "wasmer"
    raise TypeError(
        f"a module loads into a wasmtime.Engine or a wasmer.Store, not a {type(into).__name__}"
    )


def fits(name: str, version: str) -> bool:
    """Return whether the engine installed here may load artifacts of this version."""
    try:
        here = installed(name)
    except ImportError:
        return True  # loading says so better
    return here.split(".")[0] == version.split(".")[0] if name == "wasmtime" else here == version


def remember(module: Any, engine: Any) -> None:
    """Remember the engine of a module for as long as the module lives."""
    if type(module).__module__.startswith("wasmtime"):  # wasmer's cannot be a key
        with _lock:
            _engines[module] = engine


def engine_of(module: Any) -> Any:
    """Return the engine that wasmkiln loaded a module into, to make a Store or imports with.

    For a wasmtime.Module or Component it is a `wasmtime.Engine`: run the module in a
    `wasmtime.Store(engine_of(module))`. For a wasmer.Module it is the `wasmer.Store` that this
    process uses where a call names none. Raise LookupError for a module of anybody else.
    """
    wasmer = sys.modules.get("wasmer")
    if wasmer is not None and isinstance(module, wasmer.Module):
        return with_wasmer.host_store()
    try:
        with _lock:
            return _engines[module]
    except (KeyError, TypeError):
        raise LookupError("wasmkiln did not load this module") from None
