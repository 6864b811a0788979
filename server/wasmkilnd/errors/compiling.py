"""How a compilation can fail: the engine refuses the module, or the job breaks."""

from __future__ import annotations

from collections.abc import Iterable

from wasmkilnd.errors.core import FROM_OUTSIDE, Fault, Reason, WasmkilnError


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
    advice = (
        f"compile it with one of: {others}" if others else "no engine of this daemon accepts it"
    )
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


def fast_compiler_lacks_feature(
    engine_id: str,
    message: str,
    offset: int | None = None,
    feature: str = "",
    *,
    valid: bool = True,
) -> WasmkilnError:
    """The engine's fast compiler cannot compile the module. ``message`` is the engine's own.

    ``valid`` is whether the engine's validator accepts the module; False if it was not asked.
    """
    accepted_by = [engine_id] if valid else []
    error = engine_lacks_feature(engine_id, message, accepted_by, offset, feature)
    needs = f" it needs {feature};" if feature else ""
    error.message = (
        f"the fast compiler of {engine_id} cannot compile this module ({message});{needs}"
        " compile it with the default compiler"
        + ("" if valid else ", which tells whether it is valid")
    )
    return error


def compile_timeout(
    engine_id: str, what: str, limit_s: float, fault: Fault = Fault.MODULE
) -> WasmkilnError:
    """The job reached its time limit, and the daemon killed it.

    A ``fault`` other than the module's: the job spent part of that time without a CPU.
    """
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
    """The job used up its CPU time, and the daemon stopped it."""
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
    """The job reached its memory limit.

    A ``fault`` other than the module's: the machine itself may have had no more memory.
    """
    what = f"needed more than {limit_bytes:,} bytes of memory and was stopped"
    if fault is not Fault.MODULE:
        what = (
            f"could not get memory or a thread while it used less than half of its {limit_bytes:,}"
            " bytes: the machine may have had no more"
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
        f"{engine_id} produced an artifact of {size_bytes:,} bytes and the limit is"
        f" {limit_bytes:,}: send a smaller module, or raise WASMKILN_MAX_ARTIFACT_BYTES",
        engine=engine_id,
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def compiler_crashed(
    engine_id: str, how: str, last_words: str, signal: str = "", fault: Fault | None = None
) -> WasmkilnError:
    """The compiler process ended without a result, or broke the job protocol.

    Without ``fault``, the signal decides.
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
    """The module broke this compiler before; ``reason`` and ``message`` say how at first."""
    return WasmkilnError(
        Reason.MODULE_QUARANTINED,
        f"this module is refused for {left_s:,.0f} s more, because compiling it failed before:"
        f" {message} ({reason}); an operator can release it",
        engine=engine_id,
        first_reason=reason,
        seconds_left=round(left_s, 1),
    )


# The daemon replaces a worker that ended within this time.
_WORKER_RETRY_S = 1.0


def worker_unavailable(engine_id: str, why: str) -> WasmkilnError:
    """The daemon cannot start a worker of the engine, or a job on it, for any module."""
    return WasmkilnError(
        Reason.WORKER_UNAVAILABLE,
        f"the daemon cannot run {engine_id} now, whatever the module ({why}): try again or call"
        " another daemon; if this lasts, an operator has to read the daemon's log",
        retry_after_s=_WORKER_RETRY_S,
        engine=engine_id,
    )
