"""The values that the daemon's parts hand to each other. All are immutable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class Kind(Enum):
    """The two binary formats of WebAssembly."""

    CORE_MODULE = "core"
    COMPONENT = "component"


class Origin(Enum):
    """Where an answer's artifact came from."""

    MEMORY = "memory"
    REDIS = "redis"
    COMPILED = "compiled"
    JOINED_FLIGHT = "joined_flight"


@dataclass(frozen=True, slots=True)
class Module:
    """A WebAssembly binary that passed admission."""

    sha256: str
    kind: Kind
    wasm: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """A runtime at one version with its compiler, as the engine itself says it."""

    name: str
    version: str
    core_version: str
    compiler: str

    @property
    def id(self) -> str:
        """What a request writes to choose this engine, e.g. ``wasmtime-50.0.1``."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """All that decides an artifact apart from the module: what a fingerprint stands for."""

    engine: EngineIdentity
    target: str
    cpu: str
    settings: Mapping[str, str]
    """Every setting with the value in force, defaults included."""
    changed_settings: Mapping[str, str]
    """Those of them that differ from the engine's default."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The identity of an artifact."""

    module_sha256: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ExternType:
    """One import or export. ``module`` is empty for exports and components."""

    module: str
    name: str
    kind: str
    """``function``, ``global``, ``table``, ``memory``, ``tag`` or ``other``."""
    type: str


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Artifact:
    """An engine's native code for one module and one spec, ready to be sent.

    Two artifacts are equal only if they are the same object: nobody compares
    megabytes by accident.
    """

    module_sha256: str
    kind: Kind
    spec: CompileSpec
    sha256: str
    size_bytes: int
    frames: tuple[bytes, ...] = field(repr=False)
    """The bytes, cut and framed as the wire carries them: see :mod:`wasmkilnd.wire`."""
    compile_time_s: float
    imports: tuple[ExternType, ...] = ()
    exports: tuple[ExternType, ...] = ()
    types_truncated: bool = False
    attestation: bytes = b""

    @property
    def key(self) -> CacheKey:
        """Under which every tier stores it."""
        return CacheKey(self.module_sha256, self.spec.fingerprint)


STAMP_BYTES = 96
"""What vouches for a stored value: a key's id (32 bytes) and its signature (64)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nobody trusted vouches for an artifact."""

    cause: str
    """``unsigned``, ``stranger`` or ``mismatch``."""
    why: str
    """For the log: the key's id and what to do, where that is known."""


@dataclass(frozen=True, slots=True)
class Strike:
    """A compile that broke the compiler, and what follows for the module."""

    key: CacheKey
    engine_id: str
    reason: str
    """Of the first failure: the public name of an error's reason."""
    message: str
    """Of the first failure."""
    count: int
    """How many failures there were."""
    left_s: float
    """How long the module is refused from now on; 0 for not at all."""


@dataclass(frozen=True, slots=True)
class EvictScope:
    """What to evict: exactly one of a module, an engine's artifacts, or everything."""

    module_sha256: str = ""
    engine_id: str = ""

    @property
    def everything(self) -> bool:
        """Whether neither a module nor an engine narrows it."""
        return not self.module_sha256 and not self.engine_id


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction removed."""

    artifacts: int = 0
    modules: int = 0
    bytes: int = 0

    def __add__(self, other: Evicted) -> Evicted:
        return Evicted(
            self.artifacts + other.artifacts,
            self.modules + other.modules,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tier holds now."""

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    evictions: int = 0


SWITCHED_OFF = "switched off"
"""The detail of a shared tier that is not wanted."""


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """Whether the shared tier answers, in words that hold no secret."""

    mode: str
    """``embedded``, ``external`` or ``none``."""
    up: bool
    detail: str = ""
    pending_writes: int = 0
    dropped_writes: int = 0

    @property
    def switched_off(self) -> bool:
        """Whether there is none because nobody wants one."""
        return self.mode == "none" and self.detail == SWITCHED_OFF


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


@dataclass(frozen=True, slots=True)
class DrainState:
    """What a daemon that is ending still waits for."""

    left_s: float
    calls: int
    flights: int


class Abandoned(Enum):
    """What becomes of a job that runs when nobody waits for it any more."""

    FINISH = "finish"
    """It runs to its end, and its artifact is kept."""
    YIELD = "yield"
    """The same, as long as no other job waits for a worker; then it is ended."""
    KILL = "kill"
    """It is ended at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller's module, its compilation and the queue are held to."""

    module_bytes: int
    artifact_bytes: int
    compile_timeout_s: float
    compile_cpu_s: float
    compile_memory_bytes: int
    queue_length: int
    queue_bytes: int
    abandoned: Abandoned = Abandoned.FINISH


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """What callers may have under way, all together."""

    calls: int
    receive_bytes: int
    """Requests that arrive or are looked at."""
    send_bytes: int
    """Copies of answers that wait to be read."""
    send_pinned_bytes: int
    """Artifacts that are being sent."""
    caller_timeout_s: float
    """For a caller to send its request, and to take something of its answer."""
