"""Client of the wasmkiln daemon: compile WebAssembly once, load it everywhere.

    from wasmkiln import Client

    with Client("127.0.0.1:50051") as client:
        artifact = client.compile("module.wasm", engine="wasmtime")
        module = artifact.load()

What callers use is public and exported here:

    client, aio     Client and AsyncClient; their methods for operators are in `_aio_operations`.
                    client.py and each `_blocking_*` is generated (`make client`).
    artifact        Artifact: bytes and header; save, open, verify, load
    attestation     who signed an artifact, and what the signature states
    trusted_keys    the public keys that a caller trusts; revoked_keys: those that count no more
    access/         the way to a daemon: TLS, tokens, profiles
    errors          one exception for each reason of the contract
    loading/        put an artifact into the engine of this interpreter
    host_store/     artifacts in files that a daemon of this machine keeps, to map them
    cli/            the `wasmkiln` command

How a call runs, from the outside in: a client hands the arguments to `_calls`, which builds
requests (`_requests`), yields the steps of a flow (`_flow`: deadline, attempts), and checks
each answer before it is used (`_methods`; for a compile `_assembly` and `_header_fields`). The
client performs the steps over its transport (`_transports`); `_status` turns a failed step
into an exception. `_modules` goes from a module's source to one that is loaded, by the shortest
way that works: loaded before, host store, daemon, this process's own engine. Nothing that a
daemon sends is believed without a check: `_header_fields` says why each field may be, and
`_untrusted` makes texts fit to be shown.

Importing this package needs grpcio, protobuf and googleapis-common-protos only, and nothing
of the daemon. The command needs `wasmkiln[cli]`, checking attestations `wasmkiln[verify]`,
and `Artifact.load` the engine itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wasmkiln import _quiet as _quiet

if TYPE_CHECKING:
    from wasmkiln import aio as aio
    from wasmkiln._assembly import Phase, Progress
    from wasmkiln.access import TLS
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
    from wasmkiln.loading.chosen import engine_of
    from wasmkiln.trusted_keys import PublicKey, TrustedKeys
    from wasmkiln.v1.types_pb2 import ArtifactHeader, ArtifactKey

    __version__: str

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


# Where what is not in `errors` comes from.
_WHERE = {
    **dict.fromkeys(("Phase", "Progress"), "_assembly"),
    **dict.fromkeys(("PublicKey", "TrustedKeys"), "trusted_keys"),
    **dict.fromkeys(("ArtifactHeader", "ArtifactKey"), "v1.types_pb2"),
    "Artifact": "artifact",
    "AsyncClient": "aio",
    "Client": "client",
    "TLS": "access",
    "engine_of": "loading.chosen",
}


def __getattr__(name: str) -> Any:
    """Import what a program uses once it does: grpc takes longer than a start of Python."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("wasmkiln")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name in __all__:
        found = getattr(import_module(f"wasmkiln.{_WHERE.get(name, 'errors')}"), name)
        return globals().setdefault(name, found)
    if name in ("aio", "artifact", "attestation", "client", "errors", "trusted_keys"):
        return import_module(f"wasmkiln.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
