"""The exceptions of the client: one class for each reason of the contract.

The names are those of the reasons, so they have no "Error" suffix. docs/reference/errors.md says
when a daemon sends each, and what a caller should do.
"""

# ruff: noqa: N818
from __future__ import annotations

import grpc

from wasmkiln._error_base import FieldViolation as FieldViolation
from wasmkiln._error_base import WasmkilnError as WasmkilnError

# --- refused by the daemon: the request or the module ---------------------------------


class InvalidRequest(WasmkilnError):
    """The request is malformed. `metadata`: at_most, size_bytes where a bound was passed."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "INVALID_REQUEST"


class NotWasm(WasmkilnError):
    """The bytes are WAT text, a compiled artifact, another file, or nothing."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "NOT_WASM"


class ModuleInvalid(WasmkilnError):
    """The module is malformed or invalid. `metadata`: engine, and offset where known."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "MODULE_INVALID"


class ModuleTooLarge(WasmkilnError):
    """The module is above a size limit. `metadata`: size_bytes, limit_bytes where known."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "MODULE_TOO_LARGE"


class DigestMismatch(WasmkilnError):
    """The module is not that of `expected_sha256`. `metadata`: both digests."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "DIGEST_MISMATCH"


class EngineUnknown(WasmkilnError):
    """The daemon serves no such engine. `metadata`: engines, the valid ones."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "ENGINE_UNKNOWN"


class EngineRemoved(WasmkilnError):
    """The daemon served this engine until it was removed. `metadata`: engines, the valid ones."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "ENGINE_REMOVED"


class TargetUnsupported(WasmkilnError):
    """The engine has no such target or cpu. `metadata`: targets or cpus, the valid ones."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "TARGET_UNSUPPORTED"


class SettingUnknown(WasmkilnError):
    """The engine has no such setting or value. `metadata`: setting, allowed."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "SETTING_UNKNOWN"


class EngineLacksFeature(WasmkilnError):
    """The engine lacks what the module needs. `metadata`: accepted_by, feature, offset."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "ENGINE_LACKS_FEATURE"


class CredentialsMissing(WasmkilnError):
    """The daemon asks who calls: use a token or a client certificate."""

    CODE = grpc.StatusCode.UNAUTHENTICATED
    REASON = "CREDENTIALS_MISSING"


class CredentialsInvalid(WasmkilnError):
    """The token or certificate does not count. `metadata`: cause.

    The cause is "malformed", "unknown" (or revoked), "expired" or "untrusted".
    """

    CODE = grpc.StatusCode.UNAUTHENTICATED
    REASON = "CREDENTIALS_INVALID"


class RoleMissing(WasmkilnError):
    """The caller may not do this. `metadata`: role, the one that it lacks."""

    CODE = grpc.StatusCode.PERMISSION_DENIED
    REASON = "ROLE_MISSING"


class ModuleNotLoaded(WasmkilnError):
    """No tier of the daemon has a module with this digest: upload it."""

    CODE = grpc.StatusCode.NOT_FOUND
    REASON = "MODULE_NOT_LOADED"


# --- failed in the daemon ---------------------------------------------------------------


class CompileTimeout(WasmkilnError):
    """Compiling took longer than the daemon allows, whatever the call's own `timeout_s`."""

    CODE = grpc.StatusCode.DEADLINE_EXCEEDED
    REASON = "COMPILE_TIMEOUT"


class CompileMemoryLimit(WasmkilnError):
    """Compiling needed more memory than the daemon allows. `metadata`: engine, limit_bytes."""

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "COMPILE_MEMORY_LIMIT"


class ArtifactTooLarge(WasmkilnError):
    """The artifact is above the limit of the daemon or of this client (`max_artifact_bytes`).

    `metadata`: size_bytes, limit_bytes.
    """

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "ARTIFACT_TOO_LARGE"


class CompilerCrashed(WasmkilnError):
    """The engine died while it compiled this module. `metadata`: engine, signal."""

    CODE = grpc.StatusCode.INTERNAL
    REASON = "COMPILER_CRASHED"


class InternalFailure(WasmkilnError):
    """The daemon has a defect. `metadata`: request_id, which its log names."""

    CODE = grpc.StatusCode.INTERNAL
    REASON = "INTERNAL"


# --- the daemon cannot do it now ----------------------------------------------------------


class ModuleQuarantined(WasmkilnError):
    """The module broke this engine not long ago, and is refused for a while."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "MODULE_QUARANTINED"


class CompileQueueFull(WasmkilnError):
    """The daemon is at a limit that protects other callers; retry after `retry_after_s`."""

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "COMPILE_QUEUE_FULL"


class ModulePinned(WasmkilnError):
    """The module is pinned, so it is not evicted: unpin it first. `metadata`: sha256."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "MODULE_PINNED"


class PinsFull(WasmkilnError):
    """All pins would take more than half of a tier, or there are too many.

    `metadata`: tier, bytes and limit_bytes, or limit.
    """

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "PINS_FULL"


class QuotaExceeded(WasmkilnError):
    """The caller has used up a quota; retry after `retry_after_s`. `metadata`: quota."""

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "QUOTA_EXCEEDED"


class WorkerUnavailable(WasmkilnError):
    """The daemon cannot start a worker of this engine now; the module is not at fault."""

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "WORKER_UNAVAILABLE"


class ServerDraining(WasmkilnError):
    """The daemon is shutting down."""

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "SERVER_DRAINING"


# --- raised by the client itself ----------------------------------------------------------


class ConnectionFailed(WasmkilnError):
    """No daemon listens at the address, TLS fails, or the connection was lost.

    `metadata`: address, detail in gRPC's words, and cause where TLS or its absence is the cause:
    "speaks_tls", "speaks_no_tls", "tls_version", "unknown_ca", "wrong_host",
    "certificate_expired", "certificate_not_yet_valid", "client_certificate_missing",
    "client_certificate_expired" or "client_certificate_refused".
    """

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "CONNECTION_FAILED"


class DeadlineExceeded(WasmkilnError):
    """The daemon did not answer within the call's own `timeout_s`."""

    CODE = grpc.StatusCode.DEADLINE_EXCEEDED
    REASON = "DEADLINE_EXCEEDED"


class ArtifactMismatch(WasmkilnError):
    """An artifact differs from its header, or its header from what the call asked for."""

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "ARTIFACT_MISMATCH"


class UnexpectedAnswer(WasmkilnError):
    """The client cannot read the daemon's answer, or it is about something else."""

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "UNEXPECTED_ANSWER"


class AttestationInvalid(WasmkilnError):
    """No trusted key signed this artifact. `metadata`: cause, and key_id where known.

    The cause is "unsigned" (no readable attestation), "stranger" (signed by a key that is not
    trusted), "revoked" (by one that is revoked) or "mismatch" (forged, or about another artifact).
    """

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "ATTESTATION_INVALID"


class VerificationNotInstalled(WasmkilnError):
    """The packages that check attestations are missing: install `wasmkiln[verify]`."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "VERIFICATION_NOT_INSTALLED"


class IncompatibleEngine(WasmkilnError):
    """This engine, on this machine, cannot load the artifact."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "INCOMPATIBLE_ENGINE"


class HostFileUnavailable(WasmkilnError):
    """No file of the host store that this process can open holds the artifact.

    `metadata`: cause, and detail, a sentence. The cause is "switched_off" (this client uses no
    host store), "not_named" (the daemon named no file) or "refused" (it named one that this
    client cannot open or does not trust).
    """

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "HOST_FILE_UNAVAILABLE"


class EngineNotInstalled(WasmkilnError):
    """This interpreter cannot import the engine that the artifact was made for."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "ENGINE_NOT_INSTALLED"
