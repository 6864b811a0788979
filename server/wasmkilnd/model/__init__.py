"""The values that the daemon's parts hand to each other.

All are frozen dataclasses and enums: they hold no connection, no lock and no behaviour beyond
what follows from their fields, and import nothing of the daemon. Every room may import them,
from the package itself: ``from wasmkilnd.model import Artifact``.

| file | values |
|---|---|
| ``artifact`` | modules, what to compile them with, artifacts, cache keys, evictions |
| ``engine`` | what an engine can do on this host, and how well its jobs are confined |
| ``identity`` | who calls, through which entrance, and what they may do |
| ``limits`` | what callers and jobs may use, and what tiers and the daemon hold now |
| ``pins`` | modules that the tiers keep whatever else needs room |
| ``policy`` | how much a namespace and an identity may use |
| ``rejection`` | why a stored value is not used |

The three that matter most: a ``Module`` and a ``CompileSpec`` go into a compilation, an
``Artifact`` comes out. ``CacheKey`` (the module's SHA-256 and the spec's fingerprint) is under
what every tier stores it.

None of them is written to Redis or the wire as it is: ``cache/value`` and ``rpc/wire`` hold the
formats.
"""

from wasmkilnd.model.artifact import (
    FAST_SETTINGS,
    HITS,
    LOCAL_HITS,
    SHA256_HEX,
    STAMP_BYTES,
    Artifact,
    CacheKey,
    CompileSpec,
    EngineIdentity,
    Evicted,
    EvictScope,
    ExternType,
    HostFile,
    Item,
    Kind,
    Module,
    Origin,
    Refusal,
    Strike,
    is_fast,
)
from wasmkilnd.model.engine import (
    EngineCapabilities,
    EngineWarmUp,
    Isolation,
    IsolationLayer,
    LayerState,
    SettingInfo,
    TargetInfo,
    UnservedEngine,
)
from wasmkilnd.model.identity import (
    ALL_ROLES,
    ANYBODY,
    DEFAULT_NAMESPACE,
    PLAINTEXT,
    Credentials,
    Entrance,
    Identity,
    Role,
    Transport,
    with_included,
)
from wasmkilnd.model.limits import (
    SWITCHED_OFF,
    Abandoned,
    DrainState,
    HostStatus,
    Limits,
    Priority,
    QuotaReading,
    RemoteStatus,
    TierUsage,
    TrafficLimits,
)
from wasmkilnd.model.pins import MAX_PINS, Held, IsPinned, Pin, PinTimes, nothing_pinned
from wasmkilnd.model.policy import NAMESPACE_NAME, NamespaceLimits, QuotaLimits
from wasmkilnd.model.rejection import RejectionCause

__all__ = [
    "ALL_ROLES",
    "ANYBODY",
    "DEFAULT_NAMESPACE",
    "FAST_SETTINGS",
    "HITS",
    "LOCAL_HITS",
    "MAX_PINS",
    "NAMESPACE_NAME",
    "PLAINTEXT",
    "SHA256_HEX",
    "STAMP_BYTES",
    "SWITCHED_OFF",
    "Abandoned",
    "Artifact",
    "CacheKey",
    "CompileSpec",
    "Credentials",
    "DrainState",
    "EngineCapabilities",
    "EngineIdentity",
    "EngineWarmUp",
    "Entrance",
    "EvictScope",
    "Evicted",
    "ExternType",
    "Held",
    "HostFile",
    "HostStatus",
    "Identity",
    "IsPinned",
    "Isolation",
    "IsolationLayer",
    "Item",
    "Kind",
    "LayerState",
    "Limits",
    "Module",
    "NamespaceLimits",
    "Origin",
    "Pin",
    "PinTimes",
    "Priority",
    "QuotaLimits",
    "QuotaReading",
    "Refusal",
    "RejectionCause",
    "RemoteStatus",
    "Role",
    "SettingInfo",
    "Strike",
    "TargetInfo",
    "TierUsage",
    "TrafficLimits",
    "Transport",
    "UnservedEngine",
    "is_fast",
    "nothing_pinned",
    "with_included",
]
