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
    """One target that the engine can compile for: it did so when the daemon asked."""

    triple: str
    cpus: Sequence[str]
    """The levels that a request may name, the default first."""
    host: bool


class LayerState(Enum):
    """Whether a layer of isolation works on this machine."""

    ENFORCED = "enforced"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class IsolationLayer:
    """One thing that confines a worker and its jobs."""

    name: str
    state: LayerState
    detail: str
    """What the layer is, or what is missing and why."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What confines a worker and its jobs; the worker tested it by trying to break out."""

    layers: Sequence[IsolationLayer] = ()
    attempts: Mapping[str, bool] = field(default_factory=dict)
    """What the worker tried, and whether that was refused."""

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
        """The layers that are missing or partial."""
        return [layer for layer in self.layers if layer.state is not LayerState.ENFORCED]


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What one engine version can do on this host; the daemon asks it at start."""

    identity: EngineIdentity
    interpreter: str
    host_triple: str
    host_cpu_features: Sequence[str]
    targets: Sequence[TargetInfo]
    settings: Sequence[SettingInfo]
    wasm_features: Sequence[str]
    kinds: frozenset[Kind]


@dataclass(frozen=True, slots=True)
class EngineWarmUp:
    """How far the artifacts of an engine are compiled before names stand for it."""

    engine_id: str
    from_engine_id: str
    """The engine whose artifacts were used most."""
    total: int = 0
    """How many artifacts there are to compile; 0 until that is known."""
    done: int = 0
    failed: int = 0
    ended: bool = False
    """Whether names stand for the engine."""


@dataclass(frozen=True, slots=True)
class UnservedEngine:
    """An engine that is installed but does not work."""

    id: str
    cause: str
