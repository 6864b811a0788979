import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from wasmkiln.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadRequest(_message.Message):
    __slots__ = ("module", "expected_sha256", "engine")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    module: bytes
    expected_sha256: str
    engine: str
    def __init__(self, module: _Optional[bytes] = ..., expected_sha256: _Optional[str] = ..., engine: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("sha256", "size_bytes", "already_loaded", "artifacts", "kind", "engine", "kept")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALREADY_LOADED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size_bytes: int
    already_loaded: bool
    artifacts: _containers.RepeatedCompositeFieldContainer[_types_pb2.CachedArtifact]
    kind: _types_pb2.Kind
    engine: str
    kept: bool
    def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., already_loaded: bool = ..., artifacts: _Optional[_Iterable[_Union[_types_pb2.CachedArtifact, _Mapping]]] = ..., kind: _Optional[_Union[_types_pb2.Kind, str]] = ..., engine: _Optional[str] = ..., kept: bool = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("sha256", "size_bytes", "engine", "offset", "data")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size_bytes: int
    engine: str
    offset: int
    data: bytes
    def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., engine: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("loaded",)
    LOADED_FIELD_NUMBER: _ClassVar[int]
    loaded: LoadResponse
    def __init__(self, loaded: _Optional[_Union[LoadResponse, _Mapping]] = ...) -> None: ...

class QueryUploadRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class QueryUploadResponse(_message.Message):
    __slots__ = ("held_bytes",)
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    held_bytes: int
    def __init__(self, held_bytes: _Optional[int] = ...) -> None: ...

class CompileRequest(_message.Message):
    __slots__ = ("sha256", "module", "engine", "target", "cpu", "settings", "omit_artifact", "skip_cache_lookup", "accept_host_file", "inline_limit_bytes", "accept_encodings", "accept_fast", "offset_bytes", "artifact_sha256", "compatibility")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SHA256_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    OMIT_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    SKIP_CACHE_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_HOST_FILE_FIELD_NUMBER: _ClassVar[int]
    INLINE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FAST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    module: bytes
    engine: str
    target: str
    cpu: str
    settings: _containers.ScalarMap[str, str]
    omit_artifact: bool
    skip_cache_lookup: bool
    accept_host_file: bool
    inline_limit_bytes: int
    accept_encodings: _containers.RepeatedScalarFieldContainer[str]
    accept_fast: bool
    offset_bytes: int
    artifact_sha256: str
    compatibility: bytes
    def __init__(self, sha256: _Optional[str] = ..., module: _Optional[bytes] = ..., engine: _Optional[str] = ..., target: _Optional[str] = ..., cpu: _Optional[str] = ..., settings: _Optional[_Mapping[str, str]] = ..., omit_artifact: bool = ..., skip_cache_lookup: bool = ..., accept_host_file: bool = ..., inline_limit_bytes: _Optional[int] = ..., accept_encodings: _Optional[_Iterable[str]] = ..., accept_fast: bool = ..., offset_bytes: _Optional[int] = ..., artifact_sha256: _Optional[str] = ..., compatibility: _Optional[bytes] = ...) -> None: ...

class CompileResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: _types_pb2.ArtifactHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[_types_pb2.ArtifactHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LatencySummary(_message.Message):
    __slots__ = ("count", "sum", "p50", "p90", "p99")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    P50_FIELD_NUMBER: _ClassVar[int]
    P90_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    count: int
    sum: _duration_pb2.Duration
    p50: _duration_pb2.Duration
    p90: _duration_pb2.Duration
    p99: _duration_pb2.Duration
    def __init__(self, count: _Optional[int] = ..., sum: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., p90: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., p99: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("tier", "entries", "bytes", "limit_bytes", "hits", "misses", "evictions", "errors", "get_latency", "put_latency", "module_hits", "module_misses", "pinned_entries", "pinned_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    GET_LATENCY_FIELD_NUMBER: _ClassVar[int]
    PUT_LATENCY_FIELD_NUMBER: _ClassVar[int]
    MODULE_HITS_FIELD_NUMBER: _ClassVar[int]
    MODULE_MISSES_FIELD_NUMBER: _ClassVar[int]
    PINNED_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    entries: int
    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    evictions: int
    errors: int
    get_latency: LatencySummary
    put_latency: LatencySummary
    module_hits: int
    module_misses: int
    pinned_entries: int
    pinned_bytes: int
    def __init__(self, tier: _Optional[str] = ..., entries: _Optional[int] = ..., bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., evictions: _Optional[int] = ..., errors: _Optional[int] = ..., get_latency: _Optional[_Union[LatencySummary, _Mapping]] = ..., put_latency: _Optional[_Union[LatencySummary, _Mapping]] = ..., module_hits: _Optional[int] = ..., module_misses: _Optional[int] = ..., pinned_entries: _Optional[int] = ..., pinned_bytes: _Optional[int] = ...) -> None: ...

class CompileStats(_message.Message):
    __slots__ = ("outcome", "count", "duration", "engine")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    count: int
    duration: LatencySummary
    engine: str
    def __init__(self, outcome: _Optional[str] = ..., count: _Optional[int] = ..., duration: _Optional[_Union[LatencySummary, _Mapping]] = ..., engine: _Optional[str] = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("engine", "workers", "busy", "queued", "replaced")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    engine: str
    workers: int
    busy: int
    queued: int
    replaced: int
    def __init__(self, engine: _Optional[str] = ..., workers: _Optional[int] = ..., busy: _Optional[int] = ..., queued: _Optional[int] = ..., replaced: _Optional[int] = ...) -> None: ...

class QuotaUsage(_message.Message):
    __slots__ = ("identity", "quota", "used", "limit", "refused")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    identity: str
    quota: str
    used: float
    limit: float
    refused: int
    def __init__(self, identity: _Optional[str] = ..., quota: _Optional[str] = ..., used: _Optional[float] = ..., limit: _Optional[float] = ..., refused: _Optional[int] = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("version", "started_at", "uptime", "tiers", "compiles", "workers", "queue_depth", "busy_workers", "flights", "flights_joined", "quarantined_modules", "hit_ratio", "redis_up", "redis_mode", "redis_detail", "pending_writes", "dropped_writes", "namespace", "quotas", "pins", "engine_warm_ups", "engine_names", "object_store_up", "object_store_mode", "object_store_detail", "pending_object_writes", "dropped_object_writes")
    class EngineNamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    COMPILES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    BUSY_WORKERS_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_JOINED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_MODULES_FIELD_NUMBER: _ClassVar[int]
    HIT_RATIO_FIELD_NUMBER: _ClassVar[int]
    REDIS_UP_FIELD_NUMBER: _ClassVar[int]
    REDIS_MODE_FIELD_NUMBER: _ClassVar[int]
    REDIS_DETAIL_FIELD_NUMBER: _ClassVar[int]
    PENDING_WRITES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_WRITES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_WARM_UPS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_NAMES_FIELD_NUMBER: _ClassVar[int]
    OBJECT_STORE_UP_FIELD_NUMBER: _ClassVar[int]
    OBJECT_STORE_MODE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_STORE_DETAIL_FIELD_NUMBER: _ClassVar[int]
    PENDING_OBJECT_WRITES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_OBJECT_WRITES_FIELD_NUMBER: _ClassVar[int]
    version: str
    started_at: _timestamp_pb2.Timestamp
    uptime: _duration_pb2.Duration
    tiers: _containers.RepeatedCompositeFieldContainer[TierStats]
    compiles: _containers.RepeatedCompositeFieldContainer[CompileStats]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStats]
    queue_depth: int
    busy_workers: int
    flights: int
    flights_joined: int
    quarantined_modules: int
    hit_ratio: float
    redis_up: bool
    redis_mode: str
    redis_detail: str
    pending_writes: int
    dropped_writes: int
    namespace: str
    quotas: _containers.RepeatedCompositeFieldContainer[QuotaUsage]
    pins: int
    engine_warm_ups: _containers.RepeatedCompositeFieldContainer[EngineWarmUp]
    engine_names: _containers.ScalarMap[str, str]
    object_store_up: bool
    object_store_mode: str
    object_store_detail: str
    pending_object_writes: int
    dropped_object_writes: int
    def __init__(self, version: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierStats, _Mapping]]] = ..., compiles: _Optional[_Iterable[_Union[CompileStats, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerStats, _Mapping]]] = ..., queue_depth: _Optional[int] = ..., busy_workers: _Optional[int] = ..., flights: _Optional[int] = ..., flights_joined: _Optional[int] = ..., quarantined_modules: _Optional[int] = ..., hit_ratio: _Optional[float] = ..., redis_up: bool = ..., redis_mode: _Optional[str] = ..., redis_detail: _Optional[str] = ..., pending_writes: _Optional[int] = ..., dropped_writes: _Optional[int] = ..., namespace: _Optional[str] = ..., quotas: _Optional[_Iterable[_Union[QuotaUsage, _Mapping]]] = ..., pins: _Optional[int] = ..., engine_warm_ups: _Optional[_Iterable[_Union[EngineWarmUp, _Mapping]]] = ..., engine_names: _Optional[_Mapping[str, str]] = ..., object_store_up: bool = ..., object_store_mode: _Optional[str] = ..., object_store_detail: _Optional[str] = ..., pending_object_writes: _Optional[int] = ..., dropped_object_writes: _Optional[int] = ...) -> None: ...

class EngineWarmUp(_message.Message):
    __slots__ = ("engine", "from_engine", "total", "done", "failed", "ended")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FROM_ENGINE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    engine: str
    from_engine: str
    total: int
    done: int
    failed: int
    ended: bool
    def __init__(self, engine: _Optional[str] = ..., from_engine: _Optional[str] = ..., total: _Optional[int] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., ended: bool = ...) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Setting(_message.Message):
    __slots__ = ("name", "default_value", "allowed_values", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_VALUES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    default_value: str
    allowed_values: _containers.RepeatedScalarFieldContainer[str]
    description: str
    def __init__(self, name: _Optional[str] = ..., default_value: _Optional[str] = ..., allowed_values: _Optional[_Iterable[str]] = ..., description: _Optional[str] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("triple", "cpus", "host", "settings")
    TRIPLE_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    triple: str
    cpus: _containers.RepeatedScalarFieldContainer[str]
    host: bool
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, triple: _Optional[str] = ..., cpus: _Optional[_Iterable[str]] = ..., host: bool = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class IsolationLayer(_message.Message):
    __slots__ = ("name", "state", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[IsolationLayer.State]
        STATE_ENFORCED: _ClassVar[IsolationLayer.State]
        STATE_PARTIAL: _ClassVar[IsolationLayer.State]
        STATE_MISSING: _ClassVar[IsolationLayer.State]
    STATE_UNSPECIFIED: IsolationLayer.State
    STATE_ENFORCED: IsolationLayer.State
    STATE_PARTIAL: IsolationLayer.State
    STATE_MISSING: IsolationLayer.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: IsolationLayer.State
    detail: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[IsolationLayer.State, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class BreakOutAttempt(_message.Message):
    __slots__ = ("name", "refused")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    refused: bool
    def __init__(self, name: _Optional[str] = ..., refused: bool = ...) -> None: ...

class Isolation(_message.Message):
    __slots__ = ("holds", "layers", "attempts")
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    holds: bool
    layers: _containers.RepeatedCompositeFieldContainer[IsolationLayer]
    attempts: _containers.RepeatedCompositeFieldContainer[BreakOutAttempt]
    def __init__(self, holds: bool = ..., layers: _Optional[_Iterable[_Union[IsolationLayer, _Mapping]]] = ..., attempts: _Optional[_Iterable[_Union[BreakOutAttempt, _Mapping]]] = ...) -> None: ...

class EngineCapabilities(_message.Message):
    __slots__ = ("engine", "fingerprint", "targets", "settings", "wasm_features", "kinds", "default", "interpreter", "host_triple", "host_cpu_features", "isolation", "advisories")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    WASM_FEATURES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    INTERPRETER_FIELD_NUMBER: _ClassVar[int]
    HOST_TRIPLE_FIELD_NUMBER: _ClassVar[int]
    HOST_CPU_FEATURES_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    ADVISORIES_FIELD_NUMBER: _ClassVar[int]
    engine: _types_pb2.Engine
    fingerprint: str
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    wasm_features: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[_types_pb2.Kind]
    default: bool
    interpreter: str
    host_triple: str
    host_cpu_features: _containers.RepeatedScalarFieldContainer[str]
    isolation: Isolation
    advisories: _containers.RepeatedCompositeFieldContainer[Advisory]
    def __init__(self, engine: _Optional[_Union[_types_pb2.Engine, _Mapping]] = ..., fingerprint: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., wasm_features: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[_Union[_types_pb2.Kind, str]]] = ..., default: bool = ..., interpreter: _Optional[str] = ..., host_triple: _Optional[str] = ..., host_cpu_features: _Optional[_Iterable[str]] = ..., isolation: _Optional[_Union[Isolation, _Mapping]] = ..., advisories: _Optional[_Iterable[_Union[Advisory, _Mapping]]] = ...) -> None: ...

class Advisory(_message.Message):
    __slots__ = ("id", "summary", "fixed_in", "url")
    ID_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    FIXED_IN_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    id: str
    summary: str
    fixed_in: _containers.RepeatedScalarFieldContainer[str]
    url: str
    def __init__(self, id: _Optional[str] = ..., summary: _Optional[str] = ..., fixed_in: _Optional[_Iterable[str]] = ..., url: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("module_bytes", "compile_time", "compile_memory_bytes", "artifact_bytes", "chunk_bytes", "compile_cpu_time", "queue_length", "find_missing_keys")
    MODULE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPILE_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPILE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPILE_CPU_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    FIND_MISSING_KEYS_FIELD_NUMBER: _ClassVar[int]
    module_bytes: int
    compile_time: _duration_pb2.Duration
    compile_memory_bytes: int
    artifact_bytes: int
    chunk_bytes: int
    compile_cpu_time: _duration_pb2.Duration
    queue_length: int
    find_missing_keys: int
    def __init__(self, module_bytes: _Optional[int] = ..., compile_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compile_memory_bytes: _Optional[int] = ..., artifact_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., compile_cpu_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queue_length: _Optional[int] = ..., find_missing_keys: _Optional[int] = ...) -> None: ...

class UnservedEngine(_message.Message):
    __slots__ = ("id", "cause")
    ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    id: str
    cause: str
    def __init__(self, id: _Optional[str] = ..., cause: _Optional[str] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("identity", "roles", "namespace", "module_bytes")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MODULE_BYTES_FIELD_NUMBER: _ClassVar[int]
    identity: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    namespace: str
    module_bytes: int
    def __init__(self, identity: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., namespace: _Optional[str] = ..., module_bytes: _Optional[int] = ...) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("version", "engines", "limits", "unserved_engines", "isolation_required", "caller", "engine_names")
    class EngineNamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_ENGINES_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    ENGINE_NAMES_FIELD_NUMBER: _ClassVar[int]
    version: str
    engines: _containers.RepeatedCompositeFieldContainer[EngineCapabilities]
    limits: Limits
    unserved_engines: _containers.RepeatedCompositeFieldContainer[UnservedEngine]
    isolation_required: bool
    caller: Caller
    engine_names: _containers.ScalarMap[str, str]
    def __init__(self, version: _Optional[str] = ..., engines: _Optional[_Iterable[_Union[EngineCapabilities, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., unserved_engines: _Optional[_Iterable[_Union[UnservedEngine, _Mapping]]] = ..., isolation_required: bool = ..., caller: _Optional[_Union[Caller, _Mapping]] = ..., engine_names: _Optional[_Mapping[str, str]] = ...) -> None: ...

class FindMissingRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[_types_pb2.ArtifactKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[_types_pb2.ArtifactKey, _Mapping]]] = ...) -> None: ...

class FindMissingResponse(_message.Message):
    __slots__ = ("missing",)
    MISSING_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedCompositeFieldContainer[_types_pb2.ArtifactKey]
    def __init__(self, missing: _Optional[_Iterable[_Union[_types_pb2.ArtifactKey, _Mapping]]] = ...) -> None: ...
