"""What an entry of the memory tier takes: its bytes, and what Python keeps beside them."""

from __future__ import annotations

from wasmkilnd.model import Artifact, ExternType, Module

ENTRY_OVERHEAD_BYTES = 1024
"""What an entry costs on top of its bytes: objects, digests, settings, the tier's tables."""

_EXTERN_OVERHEAD_BYTES = 160


def module_bytes(module: Module) -> int:
    """Return what a module takes."""
    return len(module.wasm) + ENTRY_OVERHEAD_BYTES


def artifact_bytes(artifact: Artifact) -> int:
    """Return what an artifact takes."""
    return (
        sum(map(len, artifact.frames))
        + len(artifact.attestation)
        + sum(map(_extern_bytes, artifact.imports))
        + sum(map(_extern_bytes, artifact.exports))
        + ENTRY_OVERHEAD_BYTES
    )


def _extern_bytes(extern: ExternType) -> int:
    # A thousand imports with long names can take more room than the code.
    text = len(extern.module) + len(extern.name) + len(extern.kind) + len(extern.type)
    return text + _EXTERN_OVERHEAD_BYTES
