"""Modules, each with the artifact that the engine makes of it without a daemon."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass

import wasmtime

from tests.e2e import wasm

ENGINE = f"wasmtime-{importlib.metadata.version('wasmtime')}"
# What the engine chooses by itself, which is what this process compiles for below.
CPU = "native"


@dataclass(frozen=True, slots=True)
class Known:
    """A module, and the artifact that every caller has to get."""

    wasm: bytes
    sha256: str
    artifact: bytes


def known(module: bytes) -> Known:
    """Compile ``module`` here, with the engine itself."""
    artifact = wasmtime.Module(wasmtime.Engine(), module).serialize()
    return Known(module, hashlib.sha256(module).hexdigest(), bytes(artifact))


@dataclass(frozen=True, slots=True)
class Material:
    """The modules that callers ask for again and again."""

    hot: list[Known]
    """Those that callers ask for so often that they stay in memory."""
    warm: list[Known]
    """More than memory holds: the daemon reads them from Redis each time."""
    small: list[Known]
    large: list[Known]
    """The modules whose values are tampered with: those that one read gets, and larger ones."""


def make_material() -> Material:
    """Make all modules, which takes a few seconds."""
    return Material(
        hot=[known(wasm.constant(-1 - tag)) for tag in range(2)],
        # 140 KB, of which compiling takes 60 ms; 0.6 MB in two frames, and 1.2 in three, which
        # takes two reads; both are data.
        warm=[
            *(known(wasm.many_functions(1000 + tag)) for tag in range(3)),
            *(known(wasm.with_data(size, size)) for size in (600_000, 600_001)),
            *(known(wasm.with_data(size, size)) for size in (1_200_000, 1_200_001)),
        ],
        small=[known(wasm.with_data(20_000, tag)) for tag in range(5)],
        large=[known(wasm.with_data(1_200_000, tag)) for tag in range(4)],
    )


def cold(tag: int) -> Known:
    """A new module; each ``tag`` makes another."""
    return known(wasm.constant(tag))
