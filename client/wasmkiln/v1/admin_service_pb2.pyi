import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_MEMORY: _ClassVar[Tier]
    TIER_REDIS: _ClassVar[Tier]
    TIER_HOST_STORE: _ClassVar[Tier]
    TIER_OBJECT_STORE: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_MEMORY: Tier
TIER_REDIS: Tier
TIER_HOST_STORE: Tier
TIER_OBJECT_STORE: Tier

class ListQuarantineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuarantineResponse(_message.Message):
    __slots__ = ("modules",)
    MODULES_FIELD_NUMBER: _ClassVar[int]
    modules: _containers.RepeatedCompositeFieldContainer[QuarantinedModule]
    def __init__(self, modules: _Optional[_Iterable[_Union[QuarantinedModule, _Mapping]]] = ...) -> None: ...

class QuarantinedModule(_message.Message):
    __slots__ = ("module_sha256", "fingerprint", "engine", "reason", "message", "strikes", "time_left")
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STRIKES_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    fingerprint: str
    engine: str
    reason: str
    message: str
    strikes: int
    time_left: _duration_pb2.Duration
    def __init__(self, module_sha256: _Optional[str] = ..., fingerprint: _Optional[str] = ..., engine: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., strikes: _Optional[int] = ..., time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "namespace", "callers", "module_sha256", "engine", "work", "waited", "ran", "memory_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    RAN_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    namespace: str
    callers: _containers.RepeatedScalarFieldContainer[str]
    module_sha256: str
    engine: str
    work: str
    waited: _duration_pb2.Duration
    ran: _duration_pb2.Duration
    memory_bytes: int
    def __init__(self, id: _Optional[str] = ..., namespace: _Optional[str] = ..., callers: _Optional[_Iterable[str]] = ..., module_sha256: _Optional[str] = ..., engine: _Optional[str] = ..., work: _Optional[str] = ..., waited: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ran: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class EndJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class EndJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ReleaseQuarantineRequest(_message.Message):
    __slots__ = ("module_sha256", "all")
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    all: bool
    def __init__(self, module_sha256: _Optional[str] = ..., all: bool = ...) -> None: ...

class ReleaseQuarantineResponse(_message.Message):
    __slots__ = ("released", "redis_unreachable")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REDIS_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    released: int
    redis_unreachable: bool
    def __init__(self, released: _Optional[int] = ..., redis_unreachable: bool = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("module_sha256", "engine", "all", "tier")
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    engine: str
    all: bool
    tier: Tier
    def __init__(self, module_sha256: _Optional[str] = ..., engine: _Optional[str] = ..., all: bool = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ("artifacts", "modules", "bytes", "unreachable_tiers", "pinned")
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_TIERS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    artifacts: int
    modules: int
    bytes: int
    unreachable_tiers: _containers.RepeatedScalarFieldContainer[str]
    pinned: int
    def __init__(self, artifacts: _Optional[int] = ..., modules: _Optional[int] = ..., bytes: _Optional[int] = ..., unreachable_tiers: _Optional[_Iterable[str]] = ..., pinned: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("module_sha256",)
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    def __init__(self, module_sha256: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("pin", "redis_unreachable")
    PIN_FIELD_NUMBER: _ClassVar[int]
    REDIS_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    pin: Pin
    redis_unreachable: bool
    def __init__(self, pin: _Optional[_Union[Pin, _Mapping]] = ..., redis_unreachable: bool = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("module_sha256",)
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    def __init__(self, module_sha256: _Optional[str] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ("removed", "redis_unreachable")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REDIS_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    redis_unreachable: bool
    def __init__(self, removed: bool = ..., redis_unreachable: bool = ...) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("pins",)
    PINS_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    def __init__(self, pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("module_sha256", "created_at", "tiers")
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    created_at: _timestamp_pb2.Timestamp
    tiers: _containers.RepeatedCompositeFieldContainer[PinnedInTier]
    def __init__(self, module_sha256: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[PinnedInTier, _Mapping]]] = ...) -> None: ...

class PinnedInTier(_message.Message):
    __slots__ = ("tier", "artifacts", "module", "bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    artifacts: int
    module: bool
    bytes: int
    def __init__(self, tier: _Optional[str] = ..., artifacts: _Optional[int] = ..., module: bool = ..., bytes: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace",)
    GRACE_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("grace", "calls", "flights")
    GRACE_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FLIGHTS_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    calls: int
    flights: int
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., calls: _Optional[int] = ..., flights: _Optional[int] = ...) -> None: ...

class UndoDrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UndoDrainResponse(_message.Message):
    __slots__ = ("undone",)
    UNDONE_FIELD_NUMBER: _ClassVar[int]
    undone: bool
    def __init__(self, undone: bool = ...) -> None: ...
