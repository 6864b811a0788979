"""One engine that is served."""

from __future__ import annotations

from dataclasses import dataclass

from wasmkilnd.engines.workers.pool import WorkerPool
from wasmkilnd.model import EngineCapabilities, Kind


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """One engine version with its workers."""

    capabilities: EngineCapabilities
    pool: WorkerPool

    @property
    def id(self) -> str:
        """What a request writes to choose it."""
        return self.capabilities.identity.id

    def takes(self, kind: Kind) -> bool:
        """Whether it runs modules of this kind at all."""
        return kind in self.capabilities.kinds
