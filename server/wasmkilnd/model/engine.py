"""What an engine can do on this host, and what confines its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from wasmkilnd.model.artifact import EngineIdentity, Kind


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One engine option that changes the artifact."""

    name: str
    default: str
    allowed: Sequence[str]
    description: str


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One target that an engine really compiled for when it was asked."""

    triple: str
    cpus: Sequence[str]
    """The levels that can be asked for, the default one first."""
    host: bool


class LayerState(Enum):
    """Whether a layer of isolation is in force."""

    ENFORCED = "enforced"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class IsolationLayer:
    """One thing that confines a worker and its jobs."""

    name: str
    state: LayerState
    detail: str
    """What it is, or what is missing and why."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What confines a worker and its jobs, as it found out itself by trying to break out."""

    layers: Sequence[IsolationLayer] = ()
    attempts: Mapping[str, bool] = field(default_factory=dict)
    """What it tried, and whether that was refused."""

    @property
    def holes(self) -> Sequence[str]:
        """What a job could do that it should not."""
        return [name for name, refused in self.attempts.items() if not refused]

    @property
    def holds(self) -> bool:
        """Whether every attempt was refused, by whichever layer."""
        return bool(self.attempts) and not self.holes

    @property
    def gaps(self) -> Sequence[IsolationLayer]:
        """The layers that are not all there."""
        return [layer for layer in self.layers if layer.state is not LayerState.ENFORCED]


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What one engine version can do on this host, asked from the engine at start."""

    identity: EngineIdentity
    interpreter: str
    host_triple: str
    host_cpu_features: Sequence[str]
    targets: Sequence[TargetInfo]
    settings: Sequence[SettingInfo]
    wasm_features: Sequence[str]
    kinds: frozenset[Kind]


@dataclass(frozen=True, slots=True)
class UnservedEngine:
    """An engine that is installed and does not work."""

    id: str
    cause: str
