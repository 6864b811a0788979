import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_CORE_MODULE: _ClassVar[Kind]
    KIND_COMPONENT: _ClassVar[Kind]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_MEMORY: _ClassVar[Origin]
    ORIGIN_REDIS: _ClassVar[Origin]
    ORIGIN_COMPILED: _ClassVar[Origin]
    ORIGIN_JOINED_FLIGHT: _ClassVar[Origin]
    ORIGIN_HOST_STORE: _ClassVar[Origin]
    ORIGIN_OBJECT_STORE: _ClassVar[Origin]

class ExternKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXTERN_KIND_UNSPECIFIED: _ClassVar[ExternKind]
    EXTERN_KIND_FUNCTION: _ClassVar[ExternKind]
    EXTERN_KIND_GLOBAL: _ClassVar[ExternKind]
    EXTERN_KIND_TABLE: _ClassVar[ExternKind]
    EXTERN_KIND_MEMORY: _ClassVar[ExternKind]
    EXTERN_KIND_TAG: _ClassVar[ExternKind]
    EXTERN_KIND_OTHER: _ClassVar[ExternKind]
KIND_UNSPECIFIED: Kind
KIND_CORE_MODULE: Kind
KIND_COMPONENT: Kind
ORIGIN_UNSPECIFIED: Origin
ORIGIN_MEMORY: Origin
ORIGIN_REDIS: Origin
ORIGIN_COMPILED: Origin
ORIGIN_JOINED_FLIGHT: Origin
ORIGIN_HOST_STORE: Origin
ORIGIN_OBJECT_STORE: Origin
EXTERN_KIND_UNSPECIFIED: ExternKind
EXTERN_KIND_FUNCTION: ExternKind
EXTERN_KIND_GLOBAL: ExternKind
EXTERN_KIND_TABLE: ExternKind
EXTERN_KIND_MEMORY: ExternKind
EXTERN_KIND_TAG: ExternKind
EXTERN_KIND_OTHER: ExternKind

class Engine(_message.Message):
    __slots__ = ("id", "name", "version", "core_version", "compiler")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPILER_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    version: str
    core_version: str
    compiler: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., core_version: _Optional[str] = ..., compiler: _Optional[str] = ...) -> None: ...

class ImportType(_message.Message):
    __slots__ = ("module", "name", "kind", "type")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    module: str
    name: str
    kind: ExternKind
    type: str
    def __init__(self, module: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[_Union[ExternKind, str]] = ..., type: _Optional[str] = ...) -> None: ...

class ExportType(_message.Message):
    __slots__ = ("name", "kind", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ExternKind
    type: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ExternKind, str]] = ..., type: _Optional[str] = ...) -> None: ...

class ArtifactKey(_message.Message):
    __slots__ = ("module_sha256", "engine", "target", "cpu", "settings", "fingerprint", "compatibility")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    engine: str
    target: str
    cpu: str
    settings: _containers.ScalarMap[str, str]
    fingerprint: str
    compatibility: bytes
    def __init__(self, module_sha256: _Optional[str] = ..., engine: _Optional[str] = ..., target: _Optional[str] = ..., cpu: _Optional[str] = ..., settings: _Optional[_Mapping[str, str]] = ..., fingerprint: _Optional[str] = ..., compatibility: _Optional[bytes] = ...) -> None: ...

class CachedArtifact(_message.Message):
    __slots__ = ("engine", "fingerprint", "target", "cpu", "size_bytes", "settings")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    engine: str
    fingerprint: str
    target: str
    cpu: str
    size_bytes: int
    settings: _containers.ScalarMap[str, str]
    def __init__(self, engine: _Optional[str] = ..., fingerprint: _Optional[str] = ..., target: _Optional[str] = ..., cpu: _Optional[str] = ..., size_bytes: _Optional[int] = ..., settings: _Optional[_Mapping[str, str]] = ...) -> None: ...

class HostFile(_message.Message):
    __slots__ = ("path", "device", "inode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    path: str
    device: int
    inode: int
    def __init__(self, path: _Optional[str] = ..., device: _Optional[int] = ..., inode: _Optional[int] = ...) -> None: ...

class ArtifactHeader(_message.Message):
    __slots__ = ("module_sha256", "artifact_sha256", "size_bytes", "engine", "target", "cpu", "settings", "fingerprint", "origin", "queue_time", "compile_time", "attestation", "kind", "imports", "exports", "types_truncated", "changed_settings", "host_file", "inline_artifact", "content_encoding", "is_fast", "signer_certificate", "offset_bytes", "compatibility")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ChangedSettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODULE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPILE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IMPORTS_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    TYPES_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    HOST_FILE_FIELD_NUMBER: _ClassVar[int]
    INLINE_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    IS_FAST_FIELD_NUMBER: _ClassVar[int]
    SIGNER_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    module_sha256: str
    artifact_sha256: str
    size_bytes: int
    engine: Engine
    target: str
    cpu: str
    settings: _containers.ScalarMap[str, str]
    fingerprint: str
    origin: Origin
    queue_time: _duration_pb2.Duration
    compile_time: _duration_pb2.Duration
    attestation: bytes
    kind: Kind
    imports: _containers.RepeatedCompositeFieldContainer[ImportType]
    exports: _containers.RepeatedCompositeFieldContainer[ExportType]
    types_truncated: bool
    changed_settings: _containers.ScalarMap[str, str]
    host_file: HostFile
    inline_artifact: bytes
    content_encoding: str
    is_fast: bool
    signer_certificate: bytes
    offset_bytes: int
    compatibility: bytes
    def __init__(self, module_sha256: _Optional[str] = ..., artifact_sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., target: _Optional[str] = ..., cpu: _Optional[str] = ..., settings: _Optional[_Mapping[str, str]] = ..., fingerprint: _Optional[str] = ..., origin: _Optional[_Union[Origin, str]] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compile_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., attestation: _Optional[bytes] = ..., kind: _Optional[_Union[Kind, str]] = ..., imports: _Optional[_Iterable[_Union[ImportType, _Mapping]]] = ..., exports: _Optional[_Iterable[_Union[ExportType, _Mapping]]] = ..., types_truncated: bool = ..., changed_settings: _Optional[_Mapping[str, str]] = ..., host_file: _Optional[_Union[HostFile, _Mapping]] = ..., inline_artifact: _Optional[bytes] = ..., content_encoding: _Optional[str] = ..., is_fast: bool = ..., signer_certificate: _Optional[bytes] = ..., offset_bytes: _Optional[int] = ..., compatibility: _Optional[bytes] = ...) -> None: ...
