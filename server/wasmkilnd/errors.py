"""Domain errors: what can go wrong with a caller's request, in the caller's words.

The transport knows how to say each (:mod:`wasmkilnd.rpc.wire.status`); nothing here
knows the transport.
"""

from __future__ import annotations

from collections.abc import Iterable
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


# By then a worker that ended is replaced.
_WORKER_RETRY_S = 1.0

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


class TierUnavailable(Exception):  # noqa: N818 - a state of the tier, and no fault of the caller's
    """A cache tier did not do what was asked of it. Never reaches a caller."""


class PartUnavailable(TierUnavailable):
    """What was asked concerns a part of a tier that is down; the rest of it answers."""


class WrongType(TierUnavailable):
    """A key holds another type of value than ours, which nobody of us put there."""


def quoted(text: str) -> str:
    """Quote a text of a caller's, and of a long one its beginning, with what was cut said."""
    if len(text) <= _MAX_QUOTED:
        return repr(text)
    return f"{text[:_MAX_QUOTED]!r}… ({len(text) - _MAX_QUOTED:,} more characters)"


def invalid_request(message: str, field: str, **metadata: int) -> WasmkilnError:
    """The request itself is malformed."""
    error = WasmkilnError(Reason.INVALID_REQUEST, message, field=field)
    error.metadata |= {name: str(value) for name, value in metadata.items()}
    return error


def not_wasm(what: str) -> WasmkilnError:
    """The bytes are something other than a WebAssembly binary."""
    return WasmkilnError(Reason.NOT_WASM, what, field="module")


def module_too_large(size_bytes: int, limit_bytes: int) -> WasmkilnError:
    """The module is above the size limit."""
    return WasmkilnError(
        Reason.MODULE_TOO_LARGE,
        f"the module has {size_bytes:,} bytes and the limit is {limit_bytes:,}:"
        " send a smaller one, or raise WASMKILN_MAX_MODULE_BYTES",
        field="module",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def digest_mismatch(expected: str, actual: str) -> WasmkilnError:
    """The module is not the one that the caller meant."""
    return WasmkilnError(
        Reason.DIGEST_MISMATCH,
        f"the module's SHA-256 is {actual}, not the expected {expected}",
        field="expected_sha256",
        expected_sha256=expected,
        actual_sha256=actual,
    )


def module_invalid(engine_id: str, message: str, offset: int | None) -> WasmkilnError:
    """The engine refuses the module. ``message`` is the engine's own."""
    error = WasmkilnError(
        Reason.MODULE_INVALID,
        f"{engine_id} says that the module is invalid: {message}",
        field="module",
        engine=engine_id,
    )
    if offset is not None:
        error.metadata["offset"] = str(offset)
    return error


def engine_unknown(engine: str, valid: Iterable[str]) -> WasmkilnError:
    """No such engine is served."""
    engines = ", ".join(valid)
    return WasmkilnError(
        Reason.ENGINE_UNKNOWN,
        f"no engine {quoted(engine)} is served here; valid are: {engines or 'none'}",
        field="engine",
        engine=engine,
        engines=engines,
    )


def target_unsupported(engine_id: str, target: str, valid: Iterable[str]) -> WasmkilnError:
    """The engine does not compile for the target."""
    targets = ", ".join(valid)
    return WasmkilnError(
        Reason.TARGET_UNSUPPORTED,
        f"{engine_id} does not compile for target {quoted(target)}; valid are: {targets}",
        field="target",
        engine=engine_id,
        target=target,
        targets=targets,
    )


def cpu_unsupported(engine_id: str, target: str, cpu: str, valid: Iterable[str]) -> WasmkilnError:
    """The target has no such cpu level."""
    cpus = ", ".join(valid)
    return WasmkilnError(
        Reason.TARGET_UNSUPPORTED,
        f"{engine_id} has no cpu level {quoted(cpu)} for {target}; valid are: {cpus}",
        field="cpu",
        engine=engine_id,
        target=target,
        cpu=cpu,
        cpus=cpus,
    )


def setting_unknown(engine_id: str, setting: str, valid: Iterable[str]) -> WasmkilnError:
    """The engine has no such setting."""
    settings = ", ".join(valid)
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} has no setting {quoted(setting)}; valid are: {settings or 'none'}",
        field="settings",
        engine=engine_id,
        setting=setting,
        allowed=settings,
    )


def setting_value_unknown(
    engine_id: str, setting: str, value: str, valid: Iterable[str]
) -> WasmkilnError:
    """The engine's setting has no such value."""
    allowed = ", ".join(valid)
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} has no value {quoted(value)} for setting {quoted(setting)};"
        f" valid are: {allowed}",
        field="settings",
        engine=engine_id,
        setting=setting,
        value=value,
        allowed=allowed,
    )


def settings_refused(engine_id: str, message: str) -> WasmkilnError:
    """Each setting is known, but the engine refuses them together."""
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} refuses this combination of settings: {message}",
        field="settings",
        engine=engine_id,
    )


def engine_lacks_feature(
    engine_id: str,
    message: str,
    accepted_by: Iterable[str],
    offset: int | None = None,
    feature: str = "",
) -> WasmkilnError:
    """The module is valid, but this engine cannot compile it. ``message`` is the engine's own.

    ``feature`` is the proposal that the module needs, where that is known.
    """
    others = ", ".join(accepted_by)
    advice = f"engines here that accept it: {others}" if others else "no engine here accepts it"
    needs = f" it needs {feature};" if feature else ""
    error = WasmkilnError(
        Reason.ENGINE_LACKS_FEATURE,
        f"{engine_id} cannot compile this module ({message});{needs} {advice}",
        field="engine",
        engine=engine_id,
        accepted_by=others,
    )
    if feature:
        error.metadata["feature"] = feature
    if offset is not None:
        error.metadata["offset"] = str(offset)
    return error


def module_not_loaded(sha256: str) -> WasmkilnError:
    """The digest is not known here."""
    return WasmkilnError(
        Reason.MODULE_NOT_LOADED,
        f"no module {sha256} is loaded here: send the module itself",
        field="sha256",
        sha256=sha256,
    )


def compile_timeout(
    engine_id: str, what: str, limit_s: float, fault: Fault = Fault.MODULE
) -> WasmkilnError:
    """The job ran past its limit of time and was killed; not by its own fault: without a CPU."""
    why, advice = "", "simplify the module"
    if fault is not Fault.MODULE:
        why, advice = ", part of it without a CPU,", "try again when the machine is less busy"
    return WasmkilnError(
        Reason.COMPILE_TIMEOUT,
        f"{engine_id} did not finish within {limit_s:g} s of {what}{why} and was stopped:"
        f" {advice}, or raise WASMKILN_COMPILE_TIMEOUT_S",
        fault=fault,
        engine=engine_id,
        limit_s=limit_s,
    )


def compile_cpu_timeout(engine_id: str, what: str, limit_s: float) -> WasmkilnError:
    """The job used up its limit of CPU time and was stopped."""
    return WasmkilnError(
        Reason.COMPILE_TIMEOUT,
        f"{engine_id} did not finish within {limit_s:g} s of CPU time, {what}, and was stopped:"
        " simplify the module, or raise WASMKILN_COMPILE_CPU_S",
        fault=Fault.MODULE,
        engine=engine_id,
        limit_s=limit_s,
    )


def compile_memory_limit(
    engine_id: str, limit_bytes: int, fault: Fault = Fault.MODULE
) -> WasmkilnError:
    """The job ran past its limit of memory; not by its own fault: the machine may have none."""
    what = f"needed more than {limit_bytes:,} bytes of memory and was stopped"
    if fault is not Fault.MODULE:
        what = (
            f"was refused memory or a thread with less than half of its {limit_bytes:,} bytes"
            " in use: the machine may have had no more"
        )
    advice = "simplify the module, or raise WASMKILN_COMPILE_MEMORY_BYTES"
    return WasmkilnError(
        Reason.COMPILE_MEMORY_LIMIT,
        f"{engine_id} {what}; {advice}",
        fault=fault,
        engine=engine_id,
        limit_bytes=limit_bytes,
    )


def artifact_too_large(engine_id: str, size_bytes: int, limit_bytes: int) -> WasmkilnError:
    """The artifact is above its size limit."""
    return WasmkilnError(
        Reason.ARTIFACT_TOO_LARGE,
        f"{engine_id} made an artifact of {size_bytes:,} bytes and the limit is {limit_bytes:,}:"
        " send a smaller module, or raise WASMKILN_MAX_ARTIFACT_BYTES",
        engine=engine_id,
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def compiler_crashed(
    engine_id: str, how: str, last_words: str, signal: str = "", fault: Fault | None = None
) -> WasmkilnError:
    """The compiler process ended without an answer, or gave one that no compiler gives.

    Without ``fault`` the signal tells whose it was.
    """
    if fault is None:
        fault = Fault.UNSURE if signal in FROM_OUTSIDE else Fault.MODULE
    return WasmkilnError(
        Reason.COMPILER_CRASHED,
        f"{engine_id} {how} while it worked on this module"
        + (f": {last_words}" if last_words else ""),
        fault=fault,
        engine=engine_id,
        signal=signal,
    )


def module_quarantined(engine_id: str, reason: str, message: str, left_s: float) -> WasmkilnError:
    """The module broke this compiler before. ``reason`` and ``message`` are of the first time."""
    return WasmkilnError(
        Reason.MODULE_QUARANTINED,
        f"the module is refused for {left_s:,.0f} s more, because of what happened before:"
        f" {message} ({reason}); an operator can release it",
        engine=engine_id,
        first_reason=reason,
        seconds_left=round(left_s, 1),
    )


def worker_unavailable(engine_id: str, why: str) -> WasmkilnError:
    """The daemon cannot start a worker of the engine, or a job on it, whatever the module."""
    return WasmkilnError(
        Reason.WORKER_UNAVAILABLE,
        f"the daemon cannot run {engine_id} now, whatever the module ({why}): try again or call"
        " another daemon; if it goes on, an operator has to look at the daemon's log",
        retry_after_s=_WORKER_RETRY_S,
        engine=engine_id,
    )


def compile_queue_full(engine_id: str, waiting: int, retry_after_s: float) -> WasmkilnError:
    """Too many compilations wait already."""
    return _overloaded(
        "queue",
        f"{waiting} compilations already wait for {engine_id}",
        retry_after_s,
        engine=engine_id,
        waiting=waiting,
    )


def modules_held(engine_id: str, held_bytes: int, retry_after_s: float) -> WasmkilnError:
    """Too much work is under way already, whatever it waits for."""
    return _overloaded(
        "queue",
        f"the modules of all that is under way hold {held_bytes:,} bytes already",
        max(1.0, retry_after_s),
        engine=engine_id,
    )


def deadline_too_near(engine_id: str, wait_s: float, left_s: float) -> WasmkilnError:
    """The caller would be gone before its turn comes."""
    return _overloaded(
        "deadline",
        f"a worker of {engine_id} would be free in about {wait_s:.1f} s,"
        f" and the call's deadline is in {max(0.0, left_s):.1f} s",
        wait_s,
        engine=engine_id,
        expected_wait_s=round(wait_s, 3),
    )


def too_many_calls(running: int, yours: int) -> WasmkilnError:
    """The daemon answers as many calls as it may, or too many of this caller."""
    return _overloaded(
        "calls", f"{running} calls are being answered, {yours} of them yours", 1.0, calls=running
    )


def too_many_connections() -> WasmkilnError:
    """The call's connection has to make way for others."""
    return _overloaded(
        "connections", "hardly any connections are left, and your host has most of them", 1.0
    )


def receiving_too_much(held_bytes: int) -> WasmkilnError:
    """Requests that are still being sent fill what they may fill."""
    return _overloaded(
        "receive", f"requests that arrive slowly hold {held_bytes:,} bytes already", 1.0
    )


def sending_too_much(held_bytes: int) -> WasmkilnError:
    """Return that are not being read fill what they may fill."""
    return _overloaded("send", f"answers that are not read hold {held_bytes:,} bytes already", 1.0)


def out_of_descriptors() -> WasmkilnError:
    """The daemon has too many files and connections open to begin anything."""
    return _overloaded(
        "descriptors", "the daemon has no file descriptors left for a compilation", 1.0
    )


def request_too_slow(limit_s: float) -> WasmkilnError:
    """The caller did not send its request."""
    return _overloaded("receive", f"the request did not arrive within {limit_s:g} s", 1.0)


def reader_too_slow(limit_s: float) -> WasmkilnError:
    """The caller does not read its answer."""
    return _overloaded("send", f"the answer was not read for {limit_s:g} s", 1.0)


def _overloaded(
    limit: str, what: str, retry_after_s: float, **metadata: str | int | float
) -> WasmkilnError:
    """A limit is met that protects the others: refused now, welcome later."""
    error = WasmkilnError(
        Reason.COMPILE_QUEUE_FULL,
        f"{what}: try again in {retry_after_s:.1f} s",
        retry_after_s=retry_after_s,
        limit=limit,
    )
    error.metadata |= {name: str(value) for name, value in metadata.items()}
    return error


def server_draining() -> WasmkilnError:
    """The daemon is shutting down."""
    return WasmkilnError(
        Reason.SERVER_DRAINING, "the daemon is shutting down: call another, or try again"
    )
