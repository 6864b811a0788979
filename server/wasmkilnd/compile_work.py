"""What one flight compiles, and the artifact that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wasmkilnd.model import Artifact, CacheKey, CompileSpec, ExternType, Module
from wasmkilnd.ports import CompiledCode
from wasmkilnd.wait_budget import WaitBudget


@dataclass(frozen=True, slots=True)
class CompileWork:
    """What one flight compiles."""

    key: CacheKey
    module: Module
    uploaded: bool
    """Whether the module came with the call, rather than from a tier."""
    spec: CompileSpec
    recompile: bool
    """Whether to compile even if the artifact is stored or another daemon compiles it."""
    budget: WaitBudget
    """How long the call that started the flight may still wait for the tiers below memory."""

    def by(self, spec: CompileSpec) -> CompileWork:
        """Return the same work with another spec."""
        return replace(self, key=spec.key_for(self.module.sha256), spec=spec)

    def artifact(self, compiled: CompiledCode) -> Artifact:
        """Return the artifact that consists of ``compiled``, not signed."""
        return Artifact(
            module_sha256=self.module.sha256,
            kind=self.module.kind,
            spec=self.spec,
            sha256=compiled.code.sha256,
            size_bytes=compiled.code.size_bytes,
            frames=compiled.code.frames,
            compile_time_s=compiled.compile_time_s,
            imports=tuple(ExternType(*row) for row in compiled.imports),
            exports=tuple(ExternType(*row) for row in compiled.exports),
            types_truncated=compiled.types_truncated,
        )
