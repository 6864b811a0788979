"""The error that a caller receives: a reason, a sentence, and whose fault it was."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Why a request failed. The names are the public ``ErrorInfo.reason``."""

    INVALID_REQUEST = "INVALID_REQUEST"
    MODULE_INVALID = "MODULE_INVALID"
    NOT_WASM = "NOT_WASM"
    MODULE_TOO_LARGE = "MODULE_TOO_LARGE"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    ENGINE_UNKNOWN = "ENGINE_UNKNOWN"
    ENGINE_REMOVED = "ENGINE_REMOVED"
    TARGET_UNSUPPORTED = "TARGET_UNSUPPORTED"
    SETTING_UNKNOWN = "SETTING_UNKNOWN"
    ENGINE_LACKS_FEATURE = "ENGINE_LACKS_FEATURE"
    MODULE_NOT_LOADED = "MODULE_NOT_LOADED"
    COMPILE_TIMEOUT = "COMPILE_TIMEOUT"
    COMPILE_MEMORY_LIMIT = "COMPILE_MEMORY_LIMIT"
    ARTIFACT_TOO_LARGE = "ARTIFACT_TOO_LARGE"
    COMPILER_CRASHED = "COMPILER_CRASHED"
    MODULE_QUARANTINED = "MODULE_QUARANTINED"
    COMPILE_QUEUE_FULL = "COMPILE_QUEUE_FULL"
    WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    ROLE_MISSING = "ROLE_MISSING"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    MODULE_PINNED = "MODULE_PINNED"
    PINS_FULL = "PINS_FULL"
    SERVER_DRAINING = "SERVER_DRAINING"
    INTERNAL = "INTERNAL"


class Fault(Enum):
    """Who caused a failure, and so how much it counts against the module."""

    NONE = "none"
    """No job on the module broke, or other work on the machine may have broken it."""
    UNSURE = "unsure"
    """A job broke while it ran alone. The machine or an operator may have caused it."""
    MODULE = "module"
    """The module broke the job."""


# Operators send these. A kernel that is out of memory may send SIGKILL to the wrong process.
FROM_OUTSIDE = frozenset({"", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})


# The longest text of a caller's that an error or a log line quotes.
_MAX_QUOTED = 100


class WasmkilnError(Exception):
    """The daemon cannot serve a request; the message says why and what to do."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        fault: Fault = Fault.NONE,
        **metadata: str | int | float,
    ) -> None:
        """Describe the failure.

        ``message`` is one sentence that says what is wrong and what to do.
        ``field`` names the request's field at fault; ``retry_after_s`` is set
        where waiting helps; ``fault`` where a job broke; the rest goes into the
        error's metadata.
        """
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.fault = fault
        self.identity = ""
        """Who was refused, where that is known: for the audit. Callers do not get it."""
        self.metadata = {name: str(value) for name, value in metadata.items()}

    def again(self) -> WasmkilnError:
        """Return a copy for one more caller, without the traceback and the causes."""
        copy = WasmkilnError.__new__(WasmkilnError, self.message)
        vars(copy).update(vars(self))
        return copy


def forget_frames(failure: BaseException | None) -> None:
    """Drop the tracebacks of ``failure`` and of the exceptions that caused it.

    Their frames hold modules, artifacts and often the task or future that holds the failure:
    a reference cycle, which would keep all of that until the next garbage collection. Call
    this where nothing reads the failure any more.
    """
    while failure is not None:
        before = failure.__context__
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        failure = before


def quoted(text: str) -> str:
    """Return a caller's text in quotes; of a long one the beginning, and how much is cut."""
    if len(text) <= _MAX_QUOTED:
        return repr(text)
    return f"{text[:_MAX_QUOTED]!r}… ({len(text) - _MAX_QUOTED:,} more characters)"
