"""What the request path needs from the outside, and what each port promises.

A port is a Protocol: the services know ports alone, and each room implements its ports without
knowing the services. ``cache.fleet`` implements ``Fleet`` and ``Claim``, ``engines`` what compiles,
``access`` the ``Guard``, ``telemetry`` the rest.

Three promises hold for every port that does not say otherwise:

- It is safe for concurrent use by the tasks of one event loop, and for no other thread.
- It raises only what its docstrings name. A ``WasmkilnError`` is told to the caller; a
  ``TierUnavailable`` says that a tier could not answer, and never stands for a miss.
- A call that is cancelled leaves the port usable.

A new method of a port needs its promise here, and a test of that promise.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

from wasmkilnd import model
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.flights import WaitBudget, Waiters
from wasmkilnd.wire import Packed

# Who may do what: the port that every call and every HTTP request passes first.


class Guard(Protocol):
    """Says who calls, and refuses what they may not do. Never waits; safe from one event loop."""

    def admit(
        self, what: str, entrance: model.Entrance, credentials: Callable[[], model.Credentials]
    ) -> model.Identity:
        """Return who calls.

        ``what`` is the path of an RPC, ``/wasmkiln.v1.ModuleService/Load``, or of a page,
        ``/metrics``. ``credentials`` reads what the call brings along; a daemon that asks for no
        identity does not call it. Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
        """


# Where the daemon writes down who did what.


class AuditEvent(Enum):
    """What a line is about."""

    COMPILE = "compile"
    """A Compile call that compiled, waited for another's compilation, or failed."""
    UPLOAD = "upload"
    """A Load call."""
    ADMIN = "admin"
    """A call of AdminService."""
    REFUSAL = "refusal"
    """A call or an HTTP request of somebody who may not make it, or has used up a quota."""
    CHANGE = "change"
    """Keys, certificates, tokens, the policy or settings differ from before."""
    START = "start"
    STOP = "stop"
    LOST = "lost"
    """Lines before this one could not be written."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """What one line of the audit says. Empty fields are left out. Nothing here is a secret."""

    event: AuditEvent
    identity: str = ""
    namespace: str = ""
    peer: str = ""
    """The address of the other end, ``192.0.2.1:40000``, ``[2001:db8::1]:40000`` or ``unix``."""
    method: str = ""
    """The path of an RPC or of a page."""
    code: str = "OK"
    """The name of the gRPC code, or the status of HTTP."""
    reason: str = ""
    module: str = ""
    engine: str = ""
    origin: str = ""
    request_id: str = ""
    about: Mapping[str, str | int | bool] = field(default_factory=dict)
    """What else there is to tell."""


class Auditor(Protocol):
    """Writes the audit. Safe for use from any thread."""

    @property
    def on(self) -> bool:
        """Whether an audit is kept at all."""

    def write(self, line: AuditLine) -> None:
        """Write a line before returning; never raise.

        The operating system has the line then: a daemon that is killed loses none. Of lines with
        another code than OK, a flood is counted instead of written.
        """


# Which daemon of a fleet compiles an artifact.


class Claim(Protocol):
    """One daemon's claim to compile one artifact.

    For the tasks of one flight. No method fails because the shared tier fails: the daemon then
    compiles by itself, so the same artifact may be compiled twice, but no call waits for a
    daemon that cannot be seen.

    The lease is taken once a worker is free, not before: a job that waits in this daemon's
    queue keeps no other daemon from compiling.
    """

    async def stored(self) -> None:
        """Return once another daemon has stored the artifact: the job needs no worker then."""

    async def take(self) -> bool:
        """Take the lease, so that other daemons wait until the artifact is stored.

        Return False if the artifact is stored already, or if another daemon compiles it.
        """

    async def wait_for_others(self) -> bool:
        """Wait while another daemon compiles; return whether the artifact is stored then."""

    def ignore_others(self) -> None:
        """Compile here from now on, whatever other daemons do: what they stored is no use."""

    def failed(self) -> None:
        """Tell other daemons, before the context ends, that the module does not compile."""


class Fleet(Protocol):
    """The daemons that share a tier. Safe for concurrent use from one event loop."""

    def claim(
        self, key: model.CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AbstractAsyncContextManager[Claim]:
        """Return this daemon's claim to compile ``key``, which lasts as long as the context.

        Its requests to the shared tier together take no longer than ``budget`` has left. Other
        daemons learn how the context ends. With ``alone``, this daemon compiles whatever other
        daemons do, and they learn nothing of it.
        """


# What compiles and validates modules.


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """The result of a compilation that succeeded."""

    code: Packed
    compile_time_s: float
    queue_time_s: float
    imports: Sequence[Sequence[str]]
    """Each as module, name, kind, type."""
    exports: Sequence[Sequence[str]]
    types_truncated: bool


Refused: TypeAlias = "Callable[[], Coroutine[Any, Any, WasmkilnError]]"
"""A compilation that an engine refused: asks other engines why, and returns the caller's error.

If no caller waits any more, it asks none and returns SERVER_DRAINING, which no caller reads. It
raises COMPILE_QUEUE_FULL or SERVER_DRAINING if an engine could not be asked.
"""


class Engines(Protocol):
    """Every engine that the daemon serves.

    Safe for concurrent use from one event loop. Whatever a module does to an engine, only the
    calls about that module fail, and each with a WasmkilnError.
    """

    def choose(self, engine: str, kind: model.Kind | None) -> str:
        """Return the id of the engine that a request names.

        ``kind`` is None while only the module's digest is known. Raises ENGINE_UNKNOWN or
        ENGINE_REMOVED.
        """

    def spec(
        self, engine_id: str, target: str, cpu: str, settings: Mapping[str, str]
    ) -> model.CompileSpec:
        """Complete a request with defaults. Raises TARGET_UNSUPPORTED or SETTING_UNKNOWN."""

    def fast(
        self, spec: model.CompileSpec, settings: Mapping[str, str]
    ) -> model.CompileSpec | None:
        """Return ``spec`` with the engine's fast compiler.

        Return None if the engine has none, or if ``settings``, those of the request, choose a
        compiler.
        """

    async def compile(
        self,
        spec: model.CompileSpec,
        module: model.Module,
        waiters: Waiters,
        *,
        ready: Callable[[float], Coroutine[Any, Any, bool]],
        unless: Callable[[], Coroutine[Any, Any, None]],
    ) -> CompiledCode | Refused | None:
        """Compile ``module`` in a worker, in the turn of ``waiters``.

        Once a worker is free, ``ready`` is awaited, with how long the module waited for it.
        Return None if that returns False, or if ``unless`` returns before. Raises the errors of
        Compile, and what ``ready`` and ``unless`` raise.
        """

    async def validate(
        self,
        engine_id: str,
        module: model.Module,
        waiters: Waiters,
        watch: AbstractAsyncContextManager[None],
    ) -> None:
        """Validate ``module`` in a worker, in the turn of ``waiters``. Raises the errors of Load.

        If the engine has to compile in order to validate, that job runs inside ``watch``.
        """
