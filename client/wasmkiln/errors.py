"""The exceptions of the client: one class for each reason of the contract.

The names are those of the reasons, so they have no "Error" suffix. docs/reference/errors.md says
when a daemon sends each, and what a caller should do.
"""

# ruff: noqa: N818
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import grpc


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the daemon refused, and why."""

    field: str
    description: str


class _Code:
    """The gRPC status code of a class. grpc takes long to import, and few programs need it."""

    def __get__(self, _error: object, kind: type[WasmkilnError]) -> grpc.StatusCode:
        import grpc

        return grpc.StatusCode[kind._CODE_NAME]


class WasmkilnError(Exception):
    """The base of every failure of a call, or of loading an artifact.

    `message` is a text for people, `code` the gRPC status code, and `reason` the contract's
    word for the condition ("" when there is none); decide by that. `metadata` holds what the
    contract lists for the reason. `retry_after_s` is how many seconds to wait before another
    try (None when the daemon did not say), and `field_violations` are the refused fields.
    """

    CODE = _Code()
    REASON: ClassVar[str] = ""
    _CODE_NAME: ClassVar[str] = "UNKNOWN"

    def __init_subclass__(cls, *, code: str = "", reason: str | None = None) -> None:
        """Take the class's code, and its reason, which is its name unless it is given."""
        cls._CODE_NAME = code or cls._CODE_NAME
        named = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()
        cls.REASON = named if reason is None else reason

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
        self._code = code
        self.reason = self.REASON if reason is None else reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field_violations = tuple(field_violations)

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.CODE if self._code is None else self._code

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.message!r}, code={self.code.name}, "
            f"reason={self.reason!r}, metadata={self.metadata!r})"
        )


class _Sent(WasmkilnError, reason=""):
    """The base of what a daemon sends instead of a result."""


# --- refused by the daemon: the request or the module ---------------------------------


class InvalidRequest(_Sent, code="INVALID_ARGUMENT"):
    """The request is malformed. `metadata`: at_most, size_bytes where a bound was passed."""


class NotWasm(_Sent, code="INVALID_ARGUMENT"):
    """The bytes are WAT text, a compiled artifact, another file, or nothing."""


class ModuleInvalid(_Sent, code="INVALID_ARGUMENT"):
    """The module is malformed or invalid. `metadata`: engine, and offset where known."""


class ModuleTooLarge(_Sent, code="INVALID_ARGUMENT"):
    """The module is above a size limit. `metadata`: size_bytes, limit_bytes, limit where known."""


class DigestMismatch(_Sent, code="INVALID_ARGUMENT"):
    """The module is not that of `expected_sha256`. `metadata`: both digests."""


class EngineUnknown(_Sent, code="INVALID_ARGUMENT"):
    """The daemon serves no such engine. `metadata`: engines, the valid ones."""


class EngineRemoved(_Sent, code="FAILED_PRECONDITION"):
    """The daemon served this engine until it was removed. `metadata`: engines, the valid ones."""


class TargetUnsupported(_Sent, code="INVALID_ARGUMENT"):
    """The engine has no such target or cpu. `metadata`: targets or cpus, the valid ones."""


class SettingUnknown(_Sent, code="INVALID_ARGUMENT"):
    """The engine has no such setting or value. `metadata`: setting, allowed."""


class CompatibilityUnknown(_Sent, code="NOT_FOUND"):
    """The daemon does not know this compatibility key: the client sends what it stands for."""


class CompatibilityUnsupported(_Sent, code="FAILED_PRECONDITION"):
    """The engine of `into` loads no code that the daemon makes. `metadata`: differences."""


class EngineLacksFeature(_Sent, code="FAILED_PRECONDITION"):
    """The engine lacks what the module needs. `metadata`: accepted_by, feature, offset."""


class CredentialsMissing(_Sent, code="UNAUTHENTICATED"):
    """The daemon asks who calls: use a token or a client certificate."""


class CredentialsInvalid(_Sent, code="UNAUTHENTICATED"):
    """The token or certificate does not count. `metadata`: cause.

    The cause is "malformed", "unknown" (or revoked), "expired" or "untrusted".
    """


class RoleMissing(_Sent, code="PERMISSION_DENIED"):
    """The caller may not do this. `metadata`: role, the one that it lacks."""


class ModuleNotLoaded(_Sent, code="NOT_FOUND"):
    """No tier of the daemon has a module with this digest: upload it."""


# --- failed in the daemon ---------------------------------------------------------------


class CompileTimeout(_Sent, code="DEADLINE_EXCEEDED"):
    """Compiling took longer than the daemon allows, whatever the call's own `timeout_s`."""


class CompileMemoryLimit(_Sent, code="RESOURCE_EXHAUSTED"):
    """Compiling needed more memory than the daemon allows. `metadata`: engine, limit_bytes."""


class ArtifactTooLarge(_Sent, code="RESOURCE_EXHAUSTED"):
    """The artifact is above the limit of the daemon or of this client (`max_artifact_bytes`).

    `metadata`: size_bytes, limit_bytes.
    """


class CompilerCrashed(_Sent, code="INTERNAL"):
    """The engine died while it compiled this module. `metadata`: engine, signal."""


class JobEnded(_Sent, code="ABORTED"):
    """An operator of the daemon ended the job that worked on this module. `metadata`: engine."""


class InternalFailure(_Sent, code="INTERNAL", reason="INTERNAL"):
    """The daemon has a defect. `metadata`: request_id, which its log names."""


# --- the daemon cannot do it now ----------------------------------------------------------


class ModuleQuarantined(_Sent, code="FAILED_PRECONDITION"):
    """The module broke this engine not long ago, and is refused for a while."""


class CompileQueueFull(_Sent, code="RESOURCE_EXHAUSTED"):
    """The daemon is at a limit that protects other callers; retry after `retry_after_s`."""


class UploadInterrupted(_Sent, code="ABORTED"):
    """An upload did not come to its end. `metadata`: held_bytes, where another one goes on."""


class ModulePinned(_Sent, code="FAILED_PRECONDITION"):
    """The module is pinned, so it is not evicted: unpin it first. `metadata`: sha256."""


class PinsFull(_Sent, code="RESOURCE_EXHAUSTED"):
    """All pins would take more than half of a tier, or there are too many.

    `metadata`: tier, bytes and limit_bytes, or limit.
    """


class QuotaExceeded(_Sent, code="RESOURCE_EXHAUSTED"):
    """The caller has used up a quota; retry after `retry_after_s`. `metadata`: quota."""


class WorkerUnavailable(_Sent, code="UNAVAILABLE"):
    """The daemon cannot start a worker of this engine now; the module is not at fault."""


class ServerDraining(_Sent, code="UNAVAILABLE"):
    """The daemon is shutting down."""


# --- raised by the client itself ----------------------------------------------------------


class ConnectionFailed(WasmkilnError, code="UNAVAILABLE"):
    """No daemon listens at the address, TLS fails, or the connection was lost.

    `metadata`: address, detail in gRPC's words, and cause where TLS or its absence is the cause:
    "speaks_tls", "speaks_no_tls", "tls_version", "unknown_ca", "wrong_host",
    "certificate_expired", "certificate_not_yet_valid", "client_certificate_missing",
    "client_certificate_expired" or "client_certificate_refused".
    """


class DeadlineExceeded(WasmkilnError, code="DEADLINE_EXCEEDED"):
    """The daemon did not answer within the call's own `timeout_s`."""


class ArtifactMismatch(WasmkilnError, code="DATA_LOSS"):
    """An artifact differs from its header, or its header from what the call asked for."""


class UnexpectedAnswer(WasmkilnError, code="DATA_LOSS"):
    """The client cannot read the daemon's answer, or it is about something else."""


class AttestationInvalid(WasmkilnError, code="DATA_LOSS"):
    """No trusted key signed this artifact. `metadata`: cause, and key_id where known.

    The cause is "unsigned" (no readable attestation), "stranger" (signed by a key that is not
    trusted), "revoked" (by one that is revoked) or "mismatch" (forged, or about another artifact).
    """


class VerificationNotInstalled(WasmkilnError, code="FAILED_PRECONDITION"):
    """The packages that check attestations are missing: install `wasmkiln[verify]`."""


class IncompatibleEngine(WasmkilnError, code="FAILED_PRECONDITION"):
    """This engine, on this machine, cannot load the artifact."""


class HostFileUnavailable(WasmkilnError, code="FAILED_PRECONDITION"):
    """No file of the host store that this process can open holds the artifact.

    `metadata`: cause, and detail, a sentence. The cause is "switched_off" (this client uses no
    host store), "not_named" (the daemon named no file) or "refused" (it named one that this
    client cannot open or does not trust).
    """


class EngineNotInstalled(WasmkilnError, code="FAILED_PRECONDITION"):
    """This interpreter cannot import the engine that the artifact was made for."""


# The reasons that a daemon sends. Any other, which a newer daemon may send, becomes a plain
# WasmkilnError.
BY_REASON: dict[str, type[WasmkilnError]] = {kind.REASON: kind for kind in _Sent.__subclasses__()}
