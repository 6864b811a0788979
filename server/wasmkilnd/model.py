"""The values that the daemon's parts hand to each other.

Nearly all are frozen dataclasses and enums: they hold no connection, no lock and no behaviour
beyond what follows from their fields. ``EngineWarmUp`` and ``Reloadable`` change. Every room may
import them.

The three that matter most: a ``Module`` and a ``CompileSpec`` go into a compilation, an
``Artifact`` comes out. ``CacheKey`` (the module's SHA-256 and the spec's fingerprint) is under
what every tier stores it.

None of them is written to Redis or the wire as it is:
``cache/value`` and ``rpc/messages`` hold the formats.
"""

from __future__ import annotations

import operator
import re
from asyncio import Future
from collections.abc import (
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import astuple, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Self, TypeAlias, TypeVar

# What identifies an artifact, and the names of namespaces: the client's rules are the daemon's.
from wasmkiln.shared import FAST_SETTINGS as FAST_SETTINGS
from wasmkiln.shared import HASHED_FORMAT as HASHED_FORMAT
from wasmkiln.shared import NAMESPACE_NAME as NAMESPACE_NAME
from wasmkiln.shared import UNHASHED_DEFAULTS as UNHASHED_DEFAULTS
from wasmkiln.shared import fingerprint as fingerprint

if TYPE_CHECKING:
    from wasmkilnd.files.spooled import Spooled

T = TypeVar("T")
# A module's bytes.
Wasm: TypeAlias = "bytes | Spooled"


class _Sums:
    """Values that are added field by field."""

    __slots__ = ()

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, astuple(self), astuple(other)))  # type: ignore[call-overload]


# Who calls, through which entrance, and what they may do.

# Callers without a namespace of their own; keys and paths of it carry no namespace.
DEFAULT_NAMESPACE = ""


class Role(Enum):
    """What an identity may do. The values are those of policy files and tokens."""

    READ = "read"  # Get artifacts by digest that a tier holds; compile nothing.
    COMPILE = "compile"  # Upload and compile modules; includes READ.
    # Evict, pin, release quarantined modules, end jobs; in the default namespace also Drain.
    ADMIN = "admin"
    METRICS = "metrics"  # Read Stats, /metrics and the connections.


ALL_ROLES = frozenset(Role)


class Transport(Enum):
    """How a connection is protected."""

    PLAINTEXT = "plaintext"
    UNIX = "unix"
    TLS = "tls"
    MTLS = "mtls"  # TLS on which every caller shows a certificate.


@dataclass(frozen=True, slots=True)
class Entrance:
    """A group of addresses that the daemon listens on, and what is served there.

    - ``address``: of a Unix socket, ``unix:/path``: its mode and group decide who can connect.
    """

    transport: Transport = Transport.PLAINTEXT
    address: str = ""


PLAINTEXT = Entrance()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings along to say who makes it.

    - ``authorization``: the metadata or header ``authorization``.
    - ``certificate``: the peer's certificate as PEM. TLS has verified it when the connection was
      made.
    """

    authorization: str = ""
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call, and what they may do.

    - ``name``: for logs, the audit and quotas: ``token:NAME``, ``spiffe://…``, ``dns:HOST``,
      ``jwt:SUBJECT``, ``unix:/path``, ``anonymous``, or empty where the daemon asks for none.
    - ``quota``: the name of its quota in the policy; empty for none.
    - ``module_bytes``: the largest module that it may send; 0 for as many as the setting says.
    """

    name: str
    roles: frozenset[Role]
    namespace: str = DEFAULT_NAMESPACE
    quota: str = ""
    module_bytes: int = 0


# Every caller of a daemon that asks for no identity.
ANYBODY = Identity("", ALL_ROLES)


# Modules, artifacts, and what identifies them.

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
    OBJECT_STORE = "object_store"


# Nothing was waited for: too many to be told one by one.
LOCAL_HITS: Final = frozenset({Origin.MEMORY, Origin.HOST_STORE})
# A tier had the artifact.
HITS: Final = LOCAL_HITS | {Origin.REDIS, Origin.OBJECT_STORE}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Module:
    """A WebAssembly binary that passed admission."""

    sha256: str
    kind: Kind
    wasm: Wasm = field(repr=False)

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


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """All that decides an artifact besides the module: the fingerprint stands for it, and compares.

    - ``settings``: every setting with its value, defaults included.
    - ``changed_settings``: the settings that differ from the engine's defaults.
    """

    engine: EngineIdentity = field(compare=False)
    target: str = field(compare=False)
    cpu: str = field(compare=False)
    settings: Mapping[str, str] = field(compare=False)
    changed_settings: Mapping[str, str] = field(compare=False)
    fingerprint: str

    @property
    def is_fast(self) -> bool:
        """Whether the engine's fast compiler makes it, whose code runs slower."""
        return any(self.changed_settings.get(name) == it for name, it in FAST_SETTINGS.values())

    def key_for(self, module_sha256: str) -> CacheKey:
        """Return the key of the artifact of a module."""
        return CacheKey(module_sha256, self.fingerprint, self.engine.id)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The identity of an artifact.

    - ``engine_id``: part of the artifact's name in Redis; empty where only a fingerprint is known.
    """

    module_sha256: str
    fingerprint: str
    engine_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ExternType:
    """One import or export. ``module`` is empty for exports and components.

    - ``kind``: ``function``, ``global``, ``table``, ``memory``, ``tag`` or ``other``.
    """

    module: str
    name: str
    kind: str
    type: str


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Artifact:
    """An engine's native code for one module and one spec, ready to be sent.

    Two artifacts are equal only if they are the same object: no code compares megabytes by
    accident.

    - ``frames``: the bytes, cut and framed as the wire carries them: see ``wire``.
    - ``encoding``: how the bytes in ``frames`` are encoded: empty for not at all, or ``zstd``.
      ``sha256``, ``size_bytes`` and ``attestation`` are of the decoded artifact.
    - ``compatibility``: the key of what the code says of its engine, where it was compiled by this
      daemon; empty otherwise, for no tier stores it.
    - ``coming``: in place of ``frames``, while they are being decoded: each as soon as it is.
    - ``pieces``: in place of ``frames``, of an artifact that memory cannot hold: returns the frames
      from an offset on, each read from its file when it is awaited.
    - ``described``: the same without its bytes, where the tier that it came from keeps that. What
      is kept has none itself, so that no artifact holds all those before it; nor has an artifact
      of which anything but its bytes was replaced.
    """

    module_sha256: str
    kind: Kind
    spec: CompileSpec
    sha256: str
    size_bytes: int
    frames: tuple[bytes, ...] = field(repr=False)
    compile_time_s: float
    imports: tuple[ExternType, ...] = ()
    exports: tuple[ExternType, ...] = ()
    types_truncated: bool = False
    attestation: bytes = b""
    encoding: str = ""
    compatibility: str = ""
    coming: Sequence[Future[bytes]] = field(default=(), repr=False)
    pieces: Callable[[int], Iterator[Awaitable[bytes]]] | None = field(default=None, repr=False)
    described: Artifact | None = field(default=None, repr=False)

    @property
    def key(self) -> CacheKey:
        """The key under which every tier stores it."""
        return self.spec.key_for(self.module_sha256)


# What a tier stores under one key.
Item: TypeAlias = "Artifact | Module"


@dataclass(frozen=True, slots=True)
class HostFile:
    """An artifact's file in the host store."""

    path: str
    device: int
    inode: int


# The size of a stored value's stamp: a key's id (32 bytes) and its signature (64).
STAMP_BYTES = 96


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the daemon refuses a stored value: no trusted key vouches for it.

    - ``cause``: ``unsigned``, ``stranger``, ``mismatch``, ``revoked`` or ``too_old``.
    - ``why``: for the log: the key's id and what to do, where that is known.
    """

    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Strike:
    """The compilations of a key that broke the compiler, and what follows for its module.

    - ``reason``: the first failure's reason, by its public name.
    - ``message``: the first failure's message.
    - ``count``: how many failures there were.
    - ``left_s``: seconds for which the daemon refuses the module from now on; 0 for not at all.
    - ``limits``: what the compilations had and reached; empty if no limit ended them.
    """

    key: CacheKey
    engine_id: str
    reason: str
    message: str
    count: int
    left_s: float
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvictScope:
    """What to evict: exactly one of a module, an engine's artifacts, or everything.

    - ``spares``: returns whether a module is pinned, so that it and its artifacts stay; None if
      none is.
    """

    module_sha256: str = ""
    engine_id: str = ""
    spares: Callable[[str], bool] | None = None

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


# Pins: modules whose artifacts the tiers keep, whatever else needs room.

# Returns whether the module with this digest is pinned.
IsPinned: TypeAlias = Callable[[str], bool]

# How many modules of a namespace may be pinned.
MAX_PINS = 10_000


def nothing_pinned(module_sha256: str) -> bool:
    """Return False: nothing is pinned."""
    return False


class PinTimes(NamedTuple):
    """When a module was pinned and unpinned last, in milliseconds since 1970; 0 for never.

    The later one counts. So what two daemons know of a module is the larger of each time.
    """

    pinned_ms: int = 0
    unpinned_ms: int = 0

    @property
    def is_pinned(self) -> bool:
        """Whether the module is pinned."""
        return self.pinned_ms > self.unpinned_ms


@dataclass(frozen=True, slots=True)
class Held(_Sums):
    """What a tier has of one pinned module.

    - ``modules``: 1 if the tier has the module's own bytes.
    """

    artifacts: int = 0
    modules: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Evicted(Held):
    """What an eviction removed.

    - ``pinned``: how many artifacts and modules of the scope stayed, because they are pinned.
    """

    pinned: int = 0


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned module, and what each tier has of it."""

    module_sha256: str
    pinned_ms: int
    tiers: Mapping[str, Held] = field(default_factory=dict)


# What an engine can do on this host, and what confines its jobs.


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One engine option that changes the artifact.

    ``allowed``: its values, the last of a number ``FIRST..LAST``, for all between.
    """

    name: str
    default: str
    allowed: Sequence[str]
    description: str

    def takes(self, value: str) -> bool:
        """Return whether a request may give it a value. A number has one way to be written."""
        first, is_range, last = self.allowed[-1].partition("..")
        if not is_range:
            return value in self.allowed
        is_number = value.isdecimal() and len(value) <= len(last) and value == str(int(value))
        return is_number and int(first) <= int(value) <= int(last)


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One target that the engine can compile for: it did so when the daemon asked.

    - ``cpus``: the levels that a request may name, the default first.
    - ``settings``: those of the engine whose default or values differ for this target.
    """

    triple: str
    cpus: Sequence[str]
    host: bool
    settings: Sequence[SettingInfo] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """What settings of an engine change in its section, beside the defaults: see ``Compared``.

    - ``loads``: whether its code runs in an engine with the defaults.
    - ``takes``: whether it runs the code of an engine with the defaults.
    """

    settings: Mapping[str, str]
    changed: Mapping[str, int | str]
    loads: bool
    takes: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """What an engine version's loaders may compare, learned for a target: see ``engines.fits``.

    - ``triple``, ``version``, ``cpu``, ``rest``: of its section with the defaults.
    - ``levels``: the CPU's flags by level, the default level first.
    - ``keys``: those of its sections with the default settings, by level.
    """

    target: str
    triple: str
    version: str
    cpu: Mapping[str, int | str]
    rest: Mapping[str, int | str]
    levels: Mapping[str, Mapping[str, int | str]]
    keys: Mapping[str, str]
    samples: Sequence[Sample]


class LayerState(Enum):
    """Whether a layer of isolation works on this machine."""

    ENFORCED = "enforced"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class IsolationLayer:
    """One thing that confines a worker and its jobs.

    - ``detail``: what the layer is, or what is missing and why.
    """

    name: str
    state: LayerState
    detail: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """What confines a worker and its jobs; the worker tested it by trying to break out.

    - ``attempts``: what the worker tried, and whether that was refused.
    """

    layers: Sequence[IsolationLayer] = ()
    attempts: Mapping[str, bool] = field(default_factory=dict)

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
    compared: Sequence[Compared] = ()


@dataclass(slots=True)
class EngineWarmUp:
    """How far the artifacts of an engine are compiled by now, before names stand for it.

    - ``from_engine_id``: the engine whose artifacts were used most.
    - ``total``: how many artifacts there are to compile; 0 until that is known.
    - ``ended``: whether names stand for the engine.
    """

    engine_id: str
    from_engine_id: str
    total: int = 0
    done: int = 0
    failed: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class UnservedEngine:
    """An engine that is installed but does not work."""

    id: str
    cause: str


def for_callers(cause: str, instead: str = "the log of the daemon says why") -> str:
    """Return what callers are told of a cause: ``instead`` of one that names a path or a command.

    Those are for the log alone.
    """
    return instead if {"/", "`"} & set(cause) else cause


# What callers, jobs and tiers are held to, and what they use of it now.


class Reloadable(Generic[T]):
    """Holds the current value; a reload replaces it as a whole.

    A piece of work that needs the value more than once reads ``current`` once, at its
    start: so a compilation ends under the limits under which it began.
    """

    def __init__(self, value: T) -> None:
        self.current = value


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on a caller's module, its compilation and the queue."""

    module_bytes: int
    artifact_bytes: int
    compile_timeout_s: float
    compile_cpu_s: float
    compile_memory_bytes: int
    queue_length: int
    queue_bytes: int
    # Of all jobs together; and of one that is tried again, alone.
    compile_memory_total_bytes: int = 2**63
    compile_memory_retry_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TierUsage(_Sums):
    """What a tier holds now.

    - ``pinned_entries``: those that the tier keeps whatever else needs room.
    - ``let_go``: how often a pinned entry was let go, as those of all pins took more than half of
      the tier.
    """

    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    evictions: int = 0
    pinned_entries: int = 0
    pinned_bytes: int = 0
    let_go: int = 0


# The detail of a tier that the settings switch off.
SWITCHED_OFF = "switched off"


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """Whether a shared tier answers, and the writes to it, in words that hold no secret.

    - ``mode``: of Redis ``embedded``, ``external`` or ``none``; of the object store what
      ``object_store_mode`` says, or ``none``; of the host store ``none`` where it is off.
    - ``up``: of the host store whether its directory can be used, and its disk answers.
    - ``strangers``: how many values stay there that keys signed which are not trusted here.
    """

    mode: str
    up: bool
    detail: str = ""
    pending_writes: int = 0
    dropped_writes: int = 0
    strangers: int = 0

    @property
    def switched_off(self) -> bool:
        """Whether the settings switch the tier off."""
        return self.mode == "none" and self.detail == SWITCHED_OFF


@dataclass(frozen=True, slots=True)
class QuotaReading:
    """How much of a quota an identity has used.

    - ``kind``: the quota's name in the policy, such as ``calls_per_minute``.
    """

    identity: str
    kind: str
    used: float
    limit: float
    refused: int

    @property
    def ratio(self) -> float:
        """Return how much of the limit is used; above 1 if more than it allows."""
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class DrainState:
    """What a daemon that drains still waits for."""

    left_s: float
    calls: int
    flights: int


# Why a stored value is not used.


class RejectionCause(Enum):
    """The causes: few and fixed, since they are labels of a metric."""

    FORMAT = "format"  # Not a value of wasmkilnd, or malformed.
    VERSION = "version"  # Written in a format of another version, or with an unknown codec.
    TRUNCATED = "truncated"  # Shorter than its header says.
    INCOMPLETE = "incomplete"  # A file of the host store's entry is missing: somebody deleted it.
    WRONG_KEY = "wrong_key"  # About another key than the one that it was read from.
    DIGEST = "digest"  # The bytes are not those that were stored.
    UNSIGNED = "unsigned"  # It has no readable attestation.
    STRANGER = "stranger"  # It is signed by a key that is not trusted.
    MISMATCH = "mismatch"  # Its attestation is forged, or about something else.
    # A file of the host store with another owner, another mode, a link, or no file at all.
    FOREIGN = "foreign"
    REVOKED = "revoked"  # It is signed by a key that is revoked since before that.
    TOO_OLD = "too_old"  # Its attestation is older than ``value_max_age_s``.
