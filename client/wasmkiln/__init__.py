"""Client of the wasmkiln daemon: compile WebAssembly once, load it everywhere.

    from wasmkiln import Client

    with Client("127.0.0.1:50051") as client:
        artifact = client.compile("module.wasm", engine="wasmtime")
        module = artifact.load()

Importing this package needs grpcio, protobuf and the rich-error protos only. The
`wasmkiln` command needs `wasmkiln[cli]`, checking attestations `wasmkiln[verify]`, and
`Artifact.load` the engine itself.
"""

from importlib.metadata import PackageNotFoundError, version

from wasmkiln._assembly import Phase, Progress
from wasmkiln.aio import AsyncClient
from wasmkiln.artifact import Artifact
from wasmkiln.client import Client
from wasmkiln.errors import (
    ArtifactMismatch,
    ArtifactTooLarge,
    AttestationInvalid,
    CompileMemoryLimit,
    CompileQueueFull,
    CompilerCrashed,
    CompileTimeout,
    ConnectionFailed,
    DeadlineExceeded,
    DigestMismatch,
    EngineLacksFeature,
    EngineNotInstalled,
    EngineUnknown,
    FieldViolation,
    IncompatibleEngine,
    InternalFailure,
    InvalidRequest,
    ModuleInvalid,
    ModuleNotLoaded,
    ModuleQuarantined,
    ModuleTooLarge,
    NotWasm,
    ServerDraining,
    SettingUnknown,
    TargetUnsupported,
    UnexpectedAnswer,
    VerificationNotInstalled,
    WasmkilnError,
    WorkerUnavailable,
)
from wasmkiln.trusted_keys import PublicKey, TrustedKeys
from wasmkiln.v1.types_pb2 import ArtifactHeader, ArtifactKey

try:
    __version__ = version("wasmkiln")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Artifact",
    "ArtifactHeader",
    "ArtifactKey",
    "ArtifactMismatch",
    "ArtifactTooLarge",
    "AsyncClient",
    "AttestationInvalid",
    "Client",
    "CompileMemoryLimit",
    "CompileQueueFull",
    "CompileTimeout",
    "CompilerCrashed",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DigestMismatch",
    "EngineLacksFeature",
    "EngineNotInstalled",
    "EngineUnknown",
    "FieldViolation",
    "IncompatibleEngine",
    "InternalFailure",
    "InvalidRequest",
    "ModuleInvalid",
    "ModuleNotLoaded",
    "ModuleQuarantined",
    "ModuleTooLarge",
    "NotWasm",
    "Phase",
    "Progress",
    "PublicKey",
    "ServerDraining",
    "SettingUnknown",
    "TargetUnsupported",
    "TrustedKeys",
    "UnexpectedAnswer",
    "VerificationNotInstalled",
    "WasmkilnError",
    "WorkerUnavailable",
    "__version__",
]
