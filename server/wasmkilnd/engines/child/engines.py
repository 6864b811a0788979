"""The table of engines by name."""

from __future__ import annotations

import importlib

from .engine import Engine

# Each class is in a module of its own, since importing it imports the engine's package.
_CLASSES = {
    "wasmer": ("wasmer_engine", "WasmerEngine"),
    "wasmtime": ("wasmtime_engine", "WasmtimeEngine"),
}


def load(name: str) -> Engine:
    """Import the engine called ``name``. Raises ImportError or KeyError."""
    module, class_name = _CLASSES[name]
    engine: Engine = getattr(importlib.import_module(f".{module}", __package__), class_name)()
    return engine
