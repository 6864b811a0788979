"""The table of engines by name."""

from __future__ import annotations

from .engine import Engine


def load(name: str) -> Engine:
    """Import the engine called ``name``. Raises ImportError or KeyError."""
    if name == "wasmer":
        from .wasmer_engine import WasmerEngine

        return WasmerEngine()
    if name == "wasmtime":
        from .wasmtime_engine import WasmtimeEngine

        return WasmtimeEngine()
    raise KeyError(name)
