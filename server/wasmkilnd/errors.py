"""What can go wrong with a caller's request, in words for the caller.

Every failure that a caller sees is one ``WasmkilnError``: a ``Reason`` (public: it travels as
``ErrorInfo.reason``), one sentence that says what is wrong and what to do, and metadata. A part
of the daemon never builds one by hand; it calls a function of this module:
``errors.module_too_large(size, limit)``. ``Reason`` is the table of errors: each row has the gRPC
code, the field at fault and the names of the metadata. Below it, each function makes a sentence;
those of its parameters that its row names are the metadata.

Nothing here knows gRPC: ``rpc/messages.py`` makes the status that a caller receives.

``Fault`` says whether a failure counts against its module: see ``quarantine``. A reason, its
metadata and its status code are a promise to callers in every language; the sentences are not.
What a cache tier raises is at the end; the daemon handles it, and no caller sees it.

CONTRIBUTING.md lists the files that a new reason touches.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, ParamSpec, Self

P = ParamSpec("P")
_INVALID, _REFUSED = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
_FULL = "RESOURCE_EXHAUSTED"


class AnyReason(Enum):
    """Why a request failed: its name, the gRPC code, and "field at fault: names of metadata"."""

    _value_: str
    code: str
    field: str
    metadata: Collection[str]

    def __new__(cls, reason: str, code: str, about: str = "") -> Self:
        """Make a row; the public ``ErrorInfo.reason`` is its value."""
        row = object.__new__(cls)
        row._value_, row.code = reason, code
        row.field, _, names = about.rpartition(":")
        row.metadata = names.split()
        return row


class Reason(AnyReason):
    """What a call of gRPC can meet, and a request of HTTP too."""

    INVALID_REQUEST = "INVALID_REQUEST", _INVALID, "at_most size_bytes"
    MODULE_INVALID = "MODULE_INVALID", _INVALID, "module: engine offset"
    NOT_WASM = "NOT_WASM", _INVALID, "module:"
    MODULE_TOO_LARGE = "MODULE_TOO_LARGE", _INVALID, "module: size_bytes limit_bytes limit"
    DIGEST_MISMATCH = "DIGEST_MISMATCH", _INVALID, "expected_sha256: expected_sha256 actual_sha256"
    UPLOAD_INTERRUPTED = "UPLOAD_INTERRUPTED", "ABORTED", "held_bytes"
    ENGINE_UNKNOWN = "ENGINE_UNKNOWN", _INVALID, "engine: engine engines"
    ENGINE_REMOVED = "ENGINE_REMOVED", _REFUSED, "engine: engine engines"
    TARGET_UNSUPPORTED = "TARGET_UNSUPPORTED", _INVALID, "target: engine target targets cpu cpus"
    SETTING_UNKNOWN = "SETTING_UNKNOWN", _INVALID, "settings: engine setting value allowed"
    COMPATIBILITY_UNKNOWN = "COMPATIBILITY_UNKNOWN", "NOT_FOUND", "compatibility:"
    COMPATIBILITY_UNSUPPORTED = (
        *("COMPATIBILITY_UNSUPPORTED", _REFUSED),
        "compatibility: engine differences",
    )
    ENGINE_LACKS_FEATURE = (
        *("ENGINE_LACKS_FEATURE", _REFUSED),
        "engine: engine accepted_by feature offset",
    )
    MODULE_NOT_LOADED = "MODULE_NOT_LOADED", "NOT_FOUND", "sha256: sha256"
    COMPILE_TIMEOUT = "COMPILE_TIMEOUT", "DEADLINE_EXCEEDED", "engine limit_s"
    COMPILE_MEMORY_LIMIT = "COMPILE_MEMORY_LIMIT", _FULL, "engine limit_bytes"
    ARTIFACT_TOO_LARGE = "ARTIFACT_TOO_LARGE", _FULL, "engine size_bytes limit_bytes"
    COMPILER_CRASHED = "COMPILER_CRASHED", "INTERNAL", "engine signal"
    JOB_ENDED = "JOB_ENDED", "ABORTED", "engine"
    MODULE_QUARANTINED = "MODULE_QUARANTINED", _REFUSED, "engine first_reason seconds_left"
    COMPILE_QUEUE_FULL = "COMPILE_QUEUE_FULL", _FULL, "limit engine waiting calls"
    WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE", "UNAVAILABLE", "engine"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING", "UNAUTHENTICATED"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID", "UNAUTHENTICATED", "cause"
    ROLE_MISSING = "ROLE_MISSING", "PERMISSION_DENIED", "role"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED", _FULL, "quota"
    MODULE_PINNED = "MODULE_PINNED", _REFUSED, "module_sha256: sha256"
    PINS_FULL = "PINS_FULL", _FULL, "tier bytes limit_bytes"
    SERVER_DRAINING = "SERVER_DRAINING", "UNAVAILABLE"
    INTERNAL = "INTERNAL", "INTERNAL", "request_id"


class HttpReason(AnyReason):
    """What only a request of HTTP can meet."""

    ARTIFACT_NOT_STORED = "ARTIFACT_NOT_STORED", "NOT_FOUND", "sha256 fingerprint"
    PATH_UNKNOWN = "PATH_UNKNOWN", "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED", "UNIMPLEMENTED"
    RANGE_NOT_SATISFIABLE = "RANGE_NOT_SATISFIABLE", "OUT_OF_RANGE", "size_bytes"
    ETAG_DIFFERS = "ETAG_DIFFERS", "ABORTED", "etag"


class Fault(Enum):
    """Who caused a failure, and so how much it counts against the module."""

    NONE = "none"  # No job on the module broke, or the machine may have broken it.
    MODULE = "module"  # The module broke the job.


# Operators send these. A kernel that is out of memory may send SIGKILL to the wrong process.
FROM_OUTSIDE = frozenset({"", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})
# The longest text of a caller's that an error or a log line quotes.
_MAX_QUOTED = 100


class WasmkilnError(Exception):
    """The daemon cannot serve a request; the message says why and what to do."""

    def __init__(self, reason: AnyReason, message: str, **about: Any) -> None:
        """Describe the failure.

        ``message`` is one sentence that says what is wrong and what to do. Of ``about``, ``field``
        names the request's field at fault, if that is not the reason's; ``retry_after_s`` is set
        where waiting helps; ``fault`` where a job broke. The rest goes into the error's metadata:
        lists joined, and what is None left out.
        """
        super().__init__(message)
        self.reason, self.message = reason, message
        self.field: str = about.pop("field", "") or reason.field
        self.retry_after_s: float | None = about.pop("retry_after_s", None)
        self.fault: Fault = about.pop("fault", Fault.NONE)
        # Who was refused, where that is known: for the audit. Callers do not get it.
        self.identity = ""
        self.metadata = {
            name: str(value) if isinstance(value, str | int | float) else ", ".join(value)
            for name, value in about.items()
            if value is not None
        }

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


def _sentence(
    reason: AnyReason, field: str = ""
) -> Callable[[Callable[P, str]], Callable[P, WasmkilnError]]:
    """Make a function that returns a sentence one that returns the error of this reason.

    Its parameters ``fault`` and ``retry_after_s`` are the error's, and so is each that the row of
    the reason names as metadata.
    """
    keys = {"fault", "retry_after_s", *reason.metadata}

    def decorate(sentence: Callable[P, str]) -> Callable[P, WasmkilnError]:
        signature = inspect.signature(sentence)

        @functools.wraps(sentence)
        def error(*args: P.args, **kwargs: P.kwargs) -> WasmkilnError:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            about = {name: value for name, value in given.arguments.items() if name in keys}
            return WasmkilnError(reason, sentence(*args, **kwargs), field=field, **about)

        return error

    return decorate


# The request: its module, engine, target and settings. "allowed" and the like are valid values.


def invalid_request(message: str, field: str, **metadata: Any) -> WasmkilnError:
    """The request itself is malformed."""
    return WasmkilnError(Reason.INVALID_REQUEST, message, field=field, **metadata)


@_sentence(Reason.NOT_WASM)
def not_wasm(what: str) -> str:
    """The bytes are not a WebAssembly binary; ``what`` says what they are."""
    return what


@_sentence(Reason.MODULE_TOO_LARGE)
def module_too_large(size_bytes: int, limit_bytes: int, limit: str) -> str:
    """The module is above a size limit: that of the setting max_module_bytes, or of the policy."""
    what = "max_module_bytes of your rule in the policy" if limit == "policy" else limit
    return f"the module has {size_bytes:,} bytes, and {what} is {limit_bytes:,}"


@_sentence(Reason.DIGEST_MISMATCH)
def digest_mismatch(expected_sha256: str, actual_sha256: str) -> str:
    """The module does not have the digest that the caller expects."""
    return f"the module's SHA-256 is {actual_sha256}, not the expected {expected_sha256}"


@_sentence(Reason.UPLOAD_INTERRUPTED)
def upload_interrupted(why: str, held_bytes: int) -> str:
    """The daemon has a part of the module, and this call does not bring what follows."""
    return f"{why}: go on at byte {held_bytes:,}"


@_sentence(Reason.ENGINE_UNKNOWN)
def engine_unknown(engine: str, engines: Collection[str]) -> str:
    """The daemon serves no engine of this name."""
    return f"this daemon serves no engine {quoted(engine)}{_choose(engines)}"


@_sentence(Reason.ENGINE_REMOVED)
def engine_removed(engine: str, engines: Collection[str]) -> str:
    """The daemon served this engine, until an operator removed it."""
    return f"{quoted(engine)} was removed from this daemon{_choose(engines)}"


@_sentence(Reason.TARGET_UNSUPPORTED)
def target_unsupported(engine: str, target: str, targets: Collection[str]) -> str:
    """The engine does not compile for the target."""
    return f"{engine} does not compile for target {quoted(target)}{_choose(targets)}"


@_sentence(Reason.TARGET_UNSUPPORTED, field="cpu")
def cpu_unsupported(engine: str, target: str, cpu: str, cpus: Collection[str]) -> str:
    """The target has no such cpu level."""
    return f"{engine} has no cpu level {quoted(cpu)} for {target}{_choose(cpus)}"


@_sentence(Reason.SETTING_UNKNOWN)
def setting_unknown(engine: str, setting: str, allowed: Collection[str]) -> str:
    """The engine has no such setting."""
    return f"{engine} has no setting {quoted(setting)}{_choose(allowed)}"


@_sentence(Reason.SETTING_UNKNOWN)
def setting_value_unknown(
    engine: str, setting: str, value: str, allowed: Collection[str], compiled_for: str = ""
) -> str:
    """The engine's setting has no such value, ``compiled_for`` a target if that may matter."""
    what = f"{setting} for target {compiled_for}" if compiled_for else setting
    return f"{engine} has no value {quoted(value)} for setting {what}{_choose(allowed)}"


@_sentence(Reason.SETTING_UNKNOWN)
def settings_refused(engine: str, message: str) -> str:
    """Each setting is known, but the engine refuses them together."""
    return f"{engine} refuses this combination of settings: {message}"


@_sentence(Reason.COMPATIBILITY_UNKNOWN)
def compatibility_unknown() -> str:
    """No section with this SHA-256 was sent, or it was forgotten."""
    return "this daemon does not know this compatibility key: send the section that it stands for"


@_sentence(Reason.COMPATIBILITY_UNSUPPORTED)
def compatibility_unsupported(engine: str, differences: Collection[str]) -> str:
    """The host's engine would refuse all code that an engine here makes."""
    why = "; ".join(differences)
    return f"cannot make code that this host's engine loads: {why}; configure it otherwise"


@_sentence(Reason.MODULE_NOT_LOADED)
def module_not_loaded(sha256: str) -> str:
    """The daemon has no module with this digest."""
    return f"this daemon has not loaded module {sha256}: send the module itself"


# Requests of HTTP.


@_sentence(HttpReason.ARTIFACT_NOT_STORED)
def artifact_not_stored(sha256: str, fingerprint: str) -> str:
    """No tier has the artifact, or it is of an engine that is not served."""
    why = "no tier holds it for an engine of this daemon, and a GET compiles nothing"
    return f"cannot send the artifact of module {sha256}: {why}; call Compile first"


@_sentence(HttpReason.PATH_UNKNOWN)
def path_unknown() -> str:
    """Nothing is served there."""
    there = "/v1/modules/SHA256 and /v1/artifacts/SHA256/FINGERPRINT, its /attestation and /header"
    return f"there is nothing at this path, only at {there}"


@_sentence(HttpReason.METHOD_NOT_ALLOWED)
def method_not_allowed() -> str:
    """The request would change something, or has no meaning."""
    return "cannot do this over HTTP: use GET or HEAD"


@_sentence(HttpReason.RANGE_NOT_SATISFIABLE)
def range_not_satisfiable(size_bytes: int) -> str:
    """The range begins behind the end."""
    return f"cannot send this range: there are {size_bytes:,} bytes"


@_sentence(HttpReason.ETAG_DIFFERS)
def etag_differs(etag: str) -> str:
    """If-Match names something else."""
    return f"cannot send what If-Match asks for: here is {etag} by now"


# The compilation: the engine refuses the module, or the job breaks.


@_sentence(Reason.MODULE_INVALID)
def module_invalid(engine: str, message: str, offset: int | None) -> str:
    """The engine refuses the module. ``message`` is the engine's own."""
    return f"{engine} says that the module is invalid: {message}"


@_sentence(Reason.ENGINE_LACKS_FEATURE)
def engine_lacks_feature(
    engine: str,
    message: str,
    accepted_by: Collection[str],
    offset: int | None = None,
    feature: str | None = None,
    compiled_for: str = "",
    *,
    fast: bool = False,
) -> str:
    """The module is valid, but this engine cannot compile it. ``message`` is the engine's own.

    ``feature`` is the proposal that the module needs, where that is known. With ``fast``, it is the
    engine's fast compiler that cannot; it is accepted by the engine if its validator accepts it.
    ``compiled_for`` is a target for which the engine cannot, where it can for its machine.
    """
    needs = f" it needs {feature};" if feature else ""
    advice = "no engine of this daemon accepts it"
    if fast:
        engine = f"the fast compiler of {engine}"
        advice = "compile it with the default compiler"
        advice += "" if accepted_by else ", which tells whether it is valid"
    elif compiled_for:
        engine, advice = f"{engine} for target {compiled_for}", "compile it for another target"
    elif accepted_by:
        advice = f"compile it with one of: {', '.join(accepted_by)}"
    return f"{engine} cannot compile this module ({message});{needs} {advice}"


@_sentence(Reason.COMPILE_TIMEOUT)
def compile_timeout(engine: str, what: str, limit_s: float, fault: Fault = Fault.MODULE) -> str:
    """The job reached its time limit, and the daemon killed it.

    A ``fault`` other than the module's: the job spent most of that time without a CPU.
    """
    advice = "simplify the module"
    if fault is not Fault.MODULE:
        what, advice = f"{what}, most of it without a CPU,", "try again"
    stopped = f"{engine} did not finish within {limit_s:g} s of {what} and was stopped"
    return f"{stopped}: {advice}, or raise WASMKILN_COMPILE_TIMEOUT_S"


@_sentence(Reason.COMPILE_TIMEOUT)
def compile_cpu_timeout(engine: str, what: str, limit_s: float, fault: Fault = Fault.MODULE) -> str:
    """The job used up its CPU time, and the daemon stopped it."""
    stopped = f"{engine} did not finish within {limit_s:g} s of CPU time, {what}, and was stopped"
    return f"{stopped}: simplify the module, or raise WASMKILN_COMPILE_CPU_S"


@_sentence(Reason.COMPILE_MEMORY_LIMIT)
def compile_memory_limit(
    engine: str,
    limit_bytes: int,
    fault: Fault = Fault.MODULE,
    *,
    setting: str = "compile_memory_bytes",
) -> str:
    """The job reached its memory limit, which is that of ``setting``.

    A ``fault`` other than the module's: the machine itself may have had no more memory.
    """
    why = ""
    if fault is not Fault.MODULE:
        why = ", or the machine had no more: it used less than half of that"
    return f"{engine} needed more than the {limit_bytes:,} bytes of {setting}{why}"


@_sentence(Reason.ARTIFACT_TOO_LARGE)
def artifact_too_large(engine: str, size_bytes: int, limit_bytes: int) -> str:
    """The artifact is above its size limit."""
    sizes = f"{size_bytes:,} bytes, and max_artifact_bytes is {limit_bytes:,}"
    return f"{engine} produced an artifact of {sizes}"


def compiler_crashed(
    engine: str, how: str, last_words: str, signal: str = "", fault: Fault | None = None
) -> WasmkilnError:
    """The compiler process ended without a result, or broke the job protocol.

    Without ``fault``, the signal decides.
    """
    fault = fault or (Fault.NONE if signal in FROM_OUTSIDE else Fault.MODULE)
    text = f"{engine} {how} while it worked on this module"
    text += f": {last_words}" if last_words else ""
    return WasmkilnError(Reason.COMPILER_CRASHED, text, fault=fault, engine=engine, signal=signal)


@_sentence(Reason.JOB_ENDED)
def job_ended(engine: str) -> str:
    """An operator ended the job, whatever the module."""
    return f"an operator ended this job of {engine}: ask the operator before you try again"


@_sentence(Reason.MODULE_QUARANTINED)
def module_quarantined(engine: str, first_reason: str, message: str, seconds_left: float) -> str:
    """The module broke this compiler before; the reason and the message say how at first."""
    return (
        f"this module is refused for {seconds_left:,.0f} s more, because compiling it failed"
        f" before: {message} ({first_reason}); an operator can release it"
    )


@_sentence(Reason.WORKER_UNAVAILABLE)
def worker_unavailable(engine: str, why: str, retry_after_s: float = 1.0) -> str:
    """The daemon cannot start a worker of the engine, or a job on it, for any module."""
    return (
        f"the daemon cannot run {engine} now, whatever the module ({why}): try again or call"
        " another daemon; if this lasts, an operator has to read the daemon's log"
    )


# Callers without the right to call. What they learn is what they lack, and nothing else.


@_sentence(Reason.CREDENTIALS_MISSING)
def credentials_missing() -> str:
    """The call says nothing about who makes it."""
    send = "send a token as the metadata `authorization: Bearer TOKEN`"
    return f"cannot tell who calls: {send}, or a client certificate to an address that asks for one"


@_sentence(Reason.CREDENTIALS_INVALID)
def credentials_invalid(cause: str, message: str) -> str:
    """The call has credentials that do not count.

    ``cause`` is ``malformed``, ``unknown``, ``expired`` or ``untrusted``. Name ``expired`` only
    for credentials that were genuine: others must not learn that.
    """
    return message


@_sentence(Reason.ROLE_MISSING)
def role_missing(role: str, what: str, *, default_namespace: bool = False) -> str:
    """The caller lacks a role. ``what`` says what it wanted, after "cannot".

    With ``default_namespace``, it has the role in its own, and wants what is about all of them.
    """
    where = " in the default namespace" if default_namespace else ""
    lacks = f"it needs the role {role}{where}, which your identity does not have"
    return f"cannot {what}: {lacks}; ask the operator of the daemon"


@_sentence(Reason.ROLE_MISSING)
def not_in_the_table(what: str, role: str = "none") -> str:
    """The caller wants what the table of access has no row for: no role permits it."""
    return f"cannot {what}: the daemon has nothing there that anybody may have"


@_sentence(Reason.QUOTA_EXCEEDED)
def quota_exceeded(quota: str, what: str, retry_after_s: float) -> str:
    """The caller has used up a quota. ``quota`` names it, ``what`` says how."""
    return f"{what}: try again in {retry_after_s:.1f} s"


# Limits that protect callers from each other, and a daemon that ends.


def _overloaded(limit: str, what: str, retry_after_s: float = 1.0, **about: Any) -> WasmkilnError:
    text = f"{what}: try again in {retry_after_s:.1f} s"
    about |= {"limit": limit, "retry_after_s": retry_after_s}
    return WasmkilnError(Reason.COMPILE_QUEUE_FULL, text, **about)


def compile_queue_full(engine: str, waiting: int, retry_after_s: float) -> WasmkilnError:
    """The queue of the engine is full."""
    what = f"{waiting} compilations already wait for {engine}"
    return _overloaded("queue", what, retry_after_s, engine=engine, waiting=waiting)


def modules_held(engine: str, held_bytes: int) -> WasmkilnError:
    """The modules of all work in progress are too large together."""
    what = f"the modules of all work in progress already hold {held_bytes:,} bytes"
    return _overloaded("queue", what, engine=engine)


def too_many_calls(running: int, yours: int) -> WasmkilnError:
    """The daemon serves as many calls as it may, or too many of this caller."""
    what = f"the daemon is serving {running} calls, {yours} of them yours"
    return _overloaded("calls", what, calls=running)


def receiving_too_much(held_bytes: int) -> WasmkilnError:
    """Requests that are still arriving fill the memory set aside for them."""
    return _overloaded("receive", f"requests that arrive slowly already hold {held_bytes:,} bytes")


def sending_too_much(held_bytes: int) -> WasmkilnError:
    """Answers that callers do not read fill the memory set aside for them."""
    what = f"answers that callers have not read already hold {held_bytes:,} bytes"
    return _overloaded("send", what)


def cannot_read_on(why: str) -> WasmkilnError:
    """The disk fails in the middle of an answer, of which the caller has a part."""
    return _overloaded("send", f"the rest of the artifact cannot be read now: {why}")


def out_of_descriptors() -> WasmkilnError:
    """The daemon has too many files and connections open to start a job."""
    what = "the daemon has no file descriptors left for a compilation"
    return _overloaded("descriptors", what)


def uploads_full(why: str) -> WasmkilnError:
    """There is no room for another upload, or for more of one; ``why`` is the first half."""
    return _overloaded("uploads", why, retry_after_s=5.0)


def request_too_slow(limit_s: float) -> WasmkilnError:
    """The caller did not send its request in time."""
    return _overloaded("receive", f"the request did not arrive within {limit_s:g} s")


def reader_too_slow(limit_s: float) -> WasmkilnError:
    """The caller did not read its answer in time."""
    return _overloaded("send", f"the caller did not read its answer for {limit_s:g} s")


@_sentence(Reason.SERVER_DRAINING)
def server_draining() -> str:
    """The daemon is shutting down."""
    return "the daemon is shutting down: call another daemon, or try again"


# What pins refuse.


@_sentence(Reason.MODULE_PINNED)
def module_pinned(sha256: str) -> str:
    """A pinned module cannot be evicted."""
    return f"cannot evict module {sha256}: it is pinned; unpin it first"


@_sentence(Reason.MODULE_NOT_LOADED, field="module_sha256")
def nothing_to_pin(sha256: str) -> str:
    """No tier has anything of the module."""
    return f"cannot pin module {sha256}: no tier has it, or an artifact of it; compile it first"


@_sentence(Reason.PINS_FULL)
def pins_full(tier: str, bytes: int, limit_bytes: int) -> str:  # noqa: A002 - its public name
    """All pins would take more than half of a tier."""
    most = f"{bytes:,} bytes of the tier {tier}, and may take half of {limit_bytes:,}"
    return f"cannot pin: all pins would take {most}; unpin others"


@_sentence(Reason.PINS_FULL)
def too_many_pins(limit: int) -> str:
    """No further module may be pinned."""
    return f"cannot pin: {limit:,} modules are pinned, and no more can be; unpin others"


# What stops a start or a reload. Never reaches a caller.


class CannotUse(Exception):  # noqa: N818 - says what the files are
    """What a setting names, such as a file or a bucket, cannot be used; no secret is told."""


# What a cache tier raises. Never reaches a caller.


class TierUnavailable(Exception):  # noqa: N818 - a state of the tier, and no fault of the caller's
    """A cache tier could not do what the daemon asked of it."""


class DoesNotFit(TierUnavailable):
    """A value is larger than all that the tier may hold; the tier works."""


class PartUnavailable(TierUnavailable):
    """One part of a tier is down, and the key lies there; the rest of the tier answers."""


class WrongType(TierUnavailable):
    """A key in Redis holds a type of value that no daemon writes."""


def _choose(valid: Collection[str]) -> str:
    return f": choose one of: {', '.join(valid) or 'none'}"
