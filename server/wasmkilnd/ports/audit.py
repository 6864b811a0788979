"""Where the daemon writes down who did what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


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
        ...

    def write(self, line: AuditLine) -> None:
        """Write a line before returning; never raise.

        The operating system has the line then: a daemon that is killed loses none. Of lines with
        another code than OK, a flood is counted instead of written.
        """
        ...
