"""Client of the wasmkiln daemon: compile WebAssembly once, load it everywhere.

    from wasmkiln import Client

    with Client("127.0.0.1:50051") as client:
        artifact = client.compile("module.wasm", engine="wasmtime")
        module = artifact.load()

What callers use is public and exported here:

    client, aio     Client and AsyncClient; their methods for operators are in `_aio_operations`.
                    client.py and each `_blocking_*` is generated (`make client`).
    artifact        Artifact: bytes and header; save, open, verify, load
    attestation     who signed an artifact, what that states, and which keys a caller trusts
    access/         the way to a daemon: TLS, tokens, profiles
    errors          one exception for each reason of the contract
    loading         put an artifact into the engine of this interpreter
    host_store      artifacts in files that a daemon of this machine keeps, to map them
    shared          what the daemon knows too: fingerprints, the host store's layout
    cli/            the `wasmkiln` command

How a call runs, from the outside in: a client hands the arguments to `_calls`, which builds
requests (`_requests`), yields the steps of a flow (`_flow`: deadline, attempts), and checks
each answer before it is used (`_methods`; for a compile `artifact`). The
client performs the steps over its transport (`_transports`); `_status` turns a failed step
into an exception. `_modules` goes from a module's source to one that is loaded, by the shortest
way that works: loaded before, host store, daemon, this process's own engine. Nothing that a
daemon sends is believed without a check; `_untrusted` makes texts fit to be shown.

Importing this package needs grpcio, protobuf and googleapis-common-protos only, and nothing
of the daemon. The command needs `wasmkiln[cli]`, checking attestations `wasmkiln[verify]`,
and `Artifact.load` the engine itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wasmkiln import _quiet as _quiet

if TYPE_CHECKING:
    from wasmkiln import aio as aio
    from wasmkiln.access import TLS
    from wasmkiln.aio import AsyncClient
    from wasmkiln.artifact import Artifact, Phase, Progress
    from wasmkiln.attestation import PublicKey, TrustedKeys
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
        CredentialsInvalid,
        CredentialsMissing,
        DeadlineExceeded,
        DigestMismatch,
        EngineLacksFeature,
        EngineNotInstalled,
        EngineRemoved,
        EngineUnknown,
        FieldViolation,
        HostFileUnavailable,
        IncompatibleEngine,
        InternalFailure,
        InvalidRequest,
        ModuleInvalid,
        ModuleNotLoaded,
        ModulePinned,
        ModuleQuarantined,
        ModuleTooLarge,
        NotWasm,
        PinsFull,
        QuotaExceeded,
        RoleMissing,
        ServerDraining,
        SettingUnknown,
        TargetUnsupported,
        UnexpectedAnswer,
        VerificationNotInstalled,
        WasmkilnError,
        WorkerUnavailable,
    )
    from wasmkiln.loading import engine_of
    from wasmkiln.v1.types_pb2 import ArtifactHeader, ArtifactKey

    __version__: str

# Where each name is; all others are exceptions, in `errors`.
_HOMES = {
    "access": ("TLS",),
    "aio": ("AsyncClient",),
    "artifact": ("Artifact", "Phase", "Progress"),
    "attestation": ("PublicKey", "TrustedKeys"),
    "client": ("Client",),
    "loading": ("engine_of",),
    "v1.types_pb2": ("ArtifactHeader", "ArtifactKey"),
}

__all__ = [
    "TLS",
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
    "CredentialsInvalid",
    "CredentialsMissing",
    "DeadlineExceeded",
    "DigestMismatch",
    "EngineLacksFeature",
    "EngineNotInstalled",
    "EngineRemoved",
    "EngineUnknown",
    "FieldViolation",
    "HostFileUnavailable",
    "IncompatibleEngine",
    "InternalFailure",
    "InvalidRequest",
    "ModuleInvalid",
    "ModuleNotLoaded",
    "ModulePinned",
    "ModuleQuarantined",
    "ModuleTooLarge",
    "NotWasm",
    "Phase",
    "PinsFull",
    "Progress",
    "PublicKey",
    "QuotaExceeded",
    "RoleMissing",
    "ServerDraining",
    "SettingUnknown",
    "TargetUnsupported",
    "TrustedKeys",
    "UnexpectedAnswer",
    "VerificationNotInstalled",
    "WasmkilnError",
    "WorkerUnavailable",
    "__version__",
    "engine_of",
]


def __getattr__(name: str) -> Any:
    """Return a name once a program uses it: the daemon needs a few files of this package only."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("wasmkiln")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name in __all__:
        home = next((home for home, names in _HOMES.items() if name in names), "errors")
        return globals().setdefault(name, getattr(import_module(f"wasmkiln.{home}"), name))
    if not name.startswith("_"):
        try:
            return import_module(f"wasmkiln.{name}")
        except ModuleNotFoundError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
