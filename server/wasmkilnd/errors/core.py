"""The error that a caller is told of: a reason, a sentence, and whose fault it was."""

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
    SERVER_DRAINING = "SERVER_DRAINING"
    INTERNAL = "INTERNAL"


class Fault(Enum):
    """Whose doing a failure was: what counts against a module, and how much."""

    NONE = "none"
    """No job about the module broke, or others' work may have broken it."""
    UNSURE = "unsure"
    """A job broke that ran alone. It may have been the machine's doing, or an operator's."""
    MODULE = "module"


# Sent by operators, and by a kernel that is out of memory: it may have met the wrong one.
FROM_OUTSIDE = frozenset({"", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})


# Of a caller's text, in an error or in a log.
_MAX_QUOTED = 100


class WasmkilnError(Exception):
    """A request that cannot be served, and why."""

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
        self.metadata = {name: str(value) for name, value in metadata.items()}

    def again(self) -> WasmkilnError:
        """Return the same failure for one more caller, without what it went through so far."""
        copy = WasmkilnError.__new__(WasmkilnError, self.message)
        vars(copy).update(vars(self))
        return copy


def forget_frames(failure: BaseException | None) -> None:
    """Let go of the frames that ``failure``, and what it was raised from, went through.

    Frames hold modules, artifacts and often the very task or future that holds the failure:
    a reference cycle, which would keep all of that until the next garbage collection. To be
    called where a failure ends its way.
    """
    while failure is not None:
        before = failure.__context__
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        failure = before


def quoted(text: str) -> str:
    """Quote a text of a caller's, and of a long one its beginning, with what was cut said."""
    if len(text) <= _MAX_QUOTED:
        return repr(text)
    return f"{text[:_MAX_QUOTED]!r}… ({len(text) - _MAX_QUOTED:,} more characters)"
