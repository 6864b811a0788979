"""What the request path needs from the outside, and what each port promises.

A port is a Protocol: each room implements its ports without knowing who uses them. ``access``
implements the ``Guard``, ``telemetry`` the ``Auditor``. A port raises what its docstrings name,
and nothing else.

A new method of a port needs its promise here, and a test of that promise.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

from wasmkilnd import model
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Packed

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


# What compiling a module comes to.


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
