"""What a call can raise, and the one table from the daemon's reasons to classes.

The names are the contract's reasons, so they carry no "Error" suffix.
"""

# ruff: noqa: N818
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class FieldViolation:
    """One field of the request that the daemon refused, and why."""

    field: str
    description: str


class WasmkilnError(Exception):
    """Every failure of a call or of loading an artifact.

    `message` is one readable text, `code` the gRPC status code, `reason` the contract's
    word for the condition ("" when there is none), `metadata` what the daemon says beside
    it, `retry_after_s` the seconds after which another try makes sense (None when the
    error doesn't say), and `field_violations` the fields that were refused.
    """

    CODE: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    REASON: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code: grpc.StatusCode = self.CODE if code is None else code
        self.reason = self.REASON if reason is None else reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.message!r}, code={self.code.name}, "
            f"reason={self.reason!r}, metadata={self.metadata!r})"
        )


# --- refused by the daemon: the request or the module ---------------------------------


class InvalidRequest(WasmkilnError):
    """The request itself is malformed, for example a digest that is none."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "INVALID_REQUEST"


class NotWasm(WasmkilnError):
    """WAT text, a compiled artifact, another file, or nothing."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "NOT_WASM"


class ModuleInvalid(WasmkilnError):
    """A malformed or invalid module. `metadata`: engine, and offset where it is known."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "MODULE_INVALID"


class ModuleTooLarge(WasmkilnError):
    """Above the daemon's size limit. `metadata`: size_bytes, limit_bytes where known."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "MODULE_TOO_LARGE"


class DigestMismatch(WasmkilnError):
    """The module differs from `expected_sha256`. `metadata`: both digests."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "DIGEST_MISMATCH"


class EngineUnknown(WasmkilnError):
    """The daemon has no such engine. `metadata`: engines, the valid ones."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "ENGINE_UNKNOWN"


class TargetUnsupported(WasmkilnError):
    """A target or cpu that the engine doesn't have. `metadata`: targets or cpus."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "TARGET_UNSUPPORTED"


class SettingUnknown(WasmkilnError):
    """A setting or value that the engine doesn't have. `metadata`: setting, allowed."""

    CODE = grpc.StatusCode.INVALID_ARGUMENT
    REASON = "SETTING_UNKNOWN"


class EngineLacksFeature(WasmkilnError):
    """A valid module, but not for this engine. `metadata`: engine, accepted_by, offset, feature."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "ENGINE_LACKS_FEATURE"


class ModuleNotLoaded(WasmkilnError):
    """The daemon knows no module with this digest: upload it."""

    CODE = grpc.StatusCode.NOT_FOUND
    REASON = "MODULE_NOT_LOADED"


# --- failed in the daemon ---------------------------------------------------------------


class CompileTimeout(WasmkilnError):
    """Compiling ran past the daemon's own limit, which no client deadline moves."""

    CODE = grpc.StatusCode.DEADLINE_EXCEEDED
    REASON = "COMPILE_TIMEOUT"


class CompileMemoryLimit(WasmkilnError):
    """Compiling ran past the daemon's memory limit. `metadata`: engine, limit_bytes."""

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "COMPILE_MEMORY_LIMIT"


class ArtifactTooLarge(WasmkilnError):
    """The artifact is above the daemon's limit, or this client's `max_artifact_bytes`.

    `metadata`: size_bytes, limit_bytes.
    """

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "ARTIFACT_TOO_LARGE"


class CompilerCrashed(WasmkilnError):
    """The engine died while it worked on this module. `metadata`: engine, signal."""

    CODE = grpc.StatusCode.INTERNAL
    REASON = "COMPILER_CRASHED"


class InternalFailure(WasmkilnError):
    """A defect of the daemon; `metadata["request_id"]` leads to its log."""

    CODE = grpc.StatusCode.INTERNAL
    REASON = "INTERNAL"


# --- not now ------------------------------------------------------------------------------


class ModuleQuarantined(WasmkilnError):
    """This module failed before and is refused for a while."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "MODULE_QUARANTINED"


class CompileQueueFull(WasmkilnError):
    """Too many compiles wait already; `retry_after_s` says when to come back."""

    CODE = grpc.StatusCode.RESOURCE_EXHAUSTED
    REASON = "COMPILE_QUEUE_FULL"


class WorkerUnavailable(WasmkilnError):
    """The daemon cannot start a process for this engine now; the module is not at fault."""

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "WORKER_UNAVAILABLE"


class ServerDraining(WasmkilnError):
    """The daemon is shutting down."""

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "SERVER_DRAINING"


# --- found by the client itself -----------------------------------------------------------


class ConnectionFailed(WasmkilnError):
    """No daemon answers at the address, or the connection was lost."""

    CODE = grpc.StatusCode.UNAVAILABLE
    REASON = "CONNECTION_FAILED"


class DeadlineExceeded(WasmkilnError):
    """The call's own deadline, `timeout_s`, passed."""

    CODE = grpc.StatusCode.DEADLINE_EXCEEDED
    REASON = "DEADLINE_EXCEEDED"


class ArtifactMismatch(WasmkilnError):
    """An artifact is not what its header says, or its header not about what was asked for."""

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "ARTIFACT_MISMATCH"


class UnexpectedAnswer(WasmkilnError):
    """A daemon's answer can't be read, or is not about what was asked."""

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "UNEXPECTED_ANSWER"


class AttestationInvalid(WasmkilnError):
    """No trusted key vouches for an artifact. `metadata`: cause, and key_id where it is known.

    The cause is "unsigned" (no attestation that can be read), "stranger" (signed by a key
    that is not trusted) or "mismatch" (forged, or about something else).
    """

    CODE = grpc.StatusCode.DATA_LOSS
    REASON = "ATTESTATION_INVALID"


class VerificationNotInstalled(WasmkilnError):
    """Attestations can't be checked here: the packages of `wasmkiln[verify]` are missing."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "VERIFICATION_NOT_INSTALLED"


class IncompatibleEngine(WasmkilnError):
    """The artifact can't be loaded by this engine on this machine."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "INCOMPATIBLE_ENGINE"


class EngineNotInstalled(WasmkilnError):
    """The engine that the artifact was made for can't be imported here."""

    CODE = grpc.StatusCode.FAILED_PRECONDITION
    REASON = "ENGINE_NOT_INSTALLED"
