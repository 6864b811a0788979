"""Modules, artifacts, and what identifies them."""

from __future__ import annotations

import re
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class Kind(Enum):
    """The two binary formats of WebAssembly."""

    CORE_MODULE = "core"
    COMPONENT = "component"


class Origin(Enum):
    """Where the daemon got the artifact of an answer."""

    MEMORY = "memory"
    REDIS = "redis"
    COMPILED = "compiled"
    JOINED_FLIGHT = "joined_flight"
    HOST_STORE = "host_store"


LOCAL_HITS: Final = frozenset({Origin.MEMORY, Origin.HOST_STORE})
"""Nothing was waited for: too many to be told one by one."""
HITS: Final = LOCAL_HITS | {Origin.REDIS}
"""A tier had the artifact."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Module:
    """A WebAssembly binary that passed admission."""

    sha256: str
    kind: Kind
    wasm: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """The key under which every tier stores it: its digest."""
        return self.sha256

    @property
    def module_sha256(self) -> str:
        """The same, by the name that it has in an artifact."""
        return self.sha256

    @property
    def size_bytes(self) -> int:
        """How large it is."""
        return len(self.wasm)


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """A runtime at one version with its compiler, as the engine reports it."""

    name: str
    version: str
    core_version: str
    compiler: str

    @property
    def id(self) -> str:
        """What a request writes to choose this engine, e.g. ``wasmtime-50.0.1``."""
        return f"{self.name}-{self.version}"


FAST_SETTINGS: Mapping[str, tuple[str, str]] = {
    "wasmtime": ("strategy", "winch"),
    "wasmer": ("compiler", "singlepass"),
}
"""By an engine's name: the setting, and its value, that chooses the engine's fast compiler."""


def is_fast(settings: Mapping[str, str]) -> bool:
    """Return whether settings that differ from an engine's defaults choose its fast compiler."""
    return any(settings.get(name) == value for name, value in FAST_SETTINGS.values())


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """All that decides an artifact besides the module: the fingerprint stands for it."""

    engine: EngineIdentity
    target: str
    cpu: str
    settings: Mapping[str, str]
    """Every setting with its value, defaults included."""
    changed_settings: Mapping[str, str]
    """The settings that differ from the engine's defaults."""
    fingerprint: str

    @property
    def is_fast(self) -> bool:
        """Whether the engine's fast compiler makes it, whose code runs slower."""
        return is_fast(self.changed_settings)

    def key_for(self, module_sha256: str) -> CacheKey:
        """Return the key of the artifact of a module."""
        return CacheKey(module_sha256, self.fingerprint, self.engine.id)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The identity of an artifact."""

    module_sha256: str
    fingerprint: str
    engine_id: str = field(default="", compare=False)
    """Part of the artifact's name in Redis; empty where only a fingerprint is known."""


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

    Two artifacts are equal only if they are the same object: no code compares megabytes by
    accident.
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
    encoding: str = ""
    """How the bytes in ``frames`` are encoded: empty for not at all, or ``zstd``. ``sha256``,
    ``size_bytes`` and ``attestation`` are of the decoded artifact."""
    coming: Sequence[Future[bytes]] = field(default=(), repr=False)
    """In place of ``frames``, while they are being decoded: each as soon as it is."""

    @property
    def key(self) -> CacheKey:
        """The key under which every tier stores it."""
        return self.spec.key_for(self.module_sha256)


Item: TypeAlias = "Artifact | Module"
"""What a tier stores under one key."""


@dataclass(frozen=True, slots=True)
class HostFile:
    """An artifact's file in the host store."""

    path: str
    device: int
    inode: int


STAMP_BYTES = 96
"""The size of a stored value's stamp: a key's id (32 bytes) and its signature (64)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the daemon refuses a stored value: no trusted key vouches for it."""

    cause: str
    """``unsigned``, ``stranger``, ``mismatch``, ``revoked`` or ``too_old``."""
    why: str
    """For the log: the key's id and what to do, where that is known."""


@dataclass(frozen=True, slots=True)
class Strike:
    """The compilations of a key that broke the compiler, and what follows for its module."""

    key: CacheKey
    engine_id: str
    reason: str
    """The first failure's reason, by its public name."""
    message: str
    """The first failure's message."""
    count: int
    """How many failures there were."""
    left_s: float
    """Seconds for which the daemon refuses the module from now on; 0 for not at all."""


@dataclass(frozen=True, slots=True)
class EvictScope:
    """What to evict: exactly one of a module, an engine's artifacts, or everything."""

    module_sha256: str = ""
    engine_id: str = ""
    spares: Callable[[str], bool] | None = None
    """Returns whether a module is pinned, so that it and its artifacts stay; None if none is."""

    def leaves(self, module_sha256: str) -> bool:
        """Return whether what is of this module stays."""
        return self.spares is not None and self.spares(module_sha256)

    def covers(self, item: Item) -> bool:
        """Return whether ``item`` is meant, pinned or not."""
        if self.engine_id:
            return isinstance(item, Artifact) and item.spec.engine.id == self.engine_id
        return self.module_sha256 in ("", item.module_sha256)

    def removes(self, item: Item) -> bool:
        """Return whether ``item`` is meant and does not stay."""
        return self.covers(item) and not self.leaves(item.module_sha256)


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction removed."""

    artifacts: int = 0
    modules: int = 0
    bytes: int = 0
    pinned: int = 0
    """How many artifacts and modules of the scope stayed, because they are pinned."""

    def __add__(self, other: Evicted) -> Evicted:
        return Evicted(
            self.artifacts + other.artifacts,
            self.modules + other.modules,
            self.bytes + other.bytes,
            self.pinned + other.pinned,
        )
