"""What a header claims of its artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasmkiln.attestation import Claims
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE

if TYPE_CHECKING:
    from wasmkiln.v1.types_pb2 import ArtifactHeader

_KINDS = {KIND_CORE_MODULE: "core", KIND_COMPONENT: "component"}


def claims_of(header: ArtifactHeader) -> Claims:
    """Return what a header claims of its artifact, to compare with an attestation."""
    engine = header.engine
    return Claims(
        artifact_sha256=header.artifact_sha256,
        module_sha256=header.module_sha256,
        fingerprint=header.fingerprint,
        kind=_KINDS.get(header.kind, ""),
        engine={
            "name": engine.name,
            "version": engine.version,
            "coreVersion": engine.core_version,
            "compiler": engine.compiler,
        },
        target=header.target,
        cpu=header.cpu,
        settings=dict(header.settings),
        changed_settings=dict(header.changed_settings),
    )
