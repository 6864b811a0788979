from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_MEMORY: _ClassVar[Tier]
    TIER_REDIS: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_MEMORY: Tier
TIER_REDIS: Tier

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
    __slots__ = ("artifacts", "modules", "bytes", "unreachable_tiers")
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_TIERS_FIELD_NUMBER: _ClassVar[int]
    artifacts: int
    modules: int
    bytes: int
    unreachable_tiers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, artifacts: _Optional[int] = ..., modules: _Optional[int] = ..., bytes: _Optional[int] = ..., unreachable_tiers: _Optional[_Iterable[str]] = ...) -> None: ...
