"""Which calls get a line of the audit, and what it says.

A call gets one line at most, before its answer is sent. A Compile call that a tier serves gets
none: it does nothing that somebody would have to answer for, and its path is the fastest. Nor
does one by a digest that no tier has: clients ask like this before they upload.
"""

from __future__ import annotations

from urllib.parse import unquote

from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Origin
from wasmkilnd.ports import AuditEvent, AuditLine, Auditor
from wasmkilnd.rpc.connections.call import Call, Use
from wasmkilnd.rpc.wire.status import CODES

_OK = "OK"
_MODULES = "/wasmkiln.v1.ModuleService/"
_OPERATING = "/wasmkiln.v1.AdminService/"
_EVENTS = {f"{_MODULES}Compile": AuditEvent.COMPILE, f"{_MODULES}Load": AuditEvent.UPLOAD}
_MADE = (Origin.COMPILED.value, Origin.JOINED_FLIGHT.value)
REFUSALS = frozenset(
    {
        Reason.CREDENTIALS_MISSING,
        Reason.CREDENTIALS_INVALID,
        Reason.ROLE_MISSING,
        Reason.QUOTA_EXCEEDED,
    }
)


def answered(auditor: Auditor, method: str, call: Call) -> None:
    """Write the line of a call that succeeded, if it gets one."""
    if not auditor.on:
        return
    event = _event(method)
    if event and (event is not AuditEvent.COMPILE or call.origin in _MADE):
        _write(auditor, event, method, call, _OK)


def failed(auditor: Auditor, method: str, call: Call, failure: WasmkilnError) -> None:
    """Write the line of a call that failed or was refused, if it gets one."""
    if not auditor.on:
        return
    refused = failure.reason in REFUSALS
    if not refused and (call.origin or failure.reason is Reason.MODULE_NOT_LOADED):
        return  # it was served, and could not be sent; or there was nothing to compile
    event = AuditEvent.REFUSAL if refused else _event(method)
    code = CODES[failure.reason].name
    _write(auditor, event, method, call, code, failure.reason.value, failure.identity)


def left(auditor: Auditor, method: str, call: Call) -> None:
    """Write the line of a call whose caller left, if the daemon had begun to work for it.

    What it began may go on: a compilation is kept, or ended, as ``abandoned_compiles`` says.
    """
    if auditor.on and call.use is Use.WORKING and not call.origin:
        _write(auditor, _event(method), method, call, "CANCELLED")


def peer_of(peer: str) -> str:
    """Return the address in gRPC's name of a peer."""
    kind, _, address = peer.partition(":")
    return unquote(address) if kind in ("ipv4", "ipv6") else kind


def _event(method: str) -> AuditEvent | None:
    return AuditEvent.ADMIN if method.startswith(_OPERATING) else _EVENTS.get(method)


def _write(
    auditor: Auditor,
    event: AuditEvent | None,
    method: str,
    call: Call,
    code: str,
    reason: str = "",
    identity: str = "",
) -> None:
    if not event or call.audited:
        return
    call.audited = True
    auditor.write(
        AuditLine(
            event,
            call.identity.name or identity,
            call.identity.namespace,
            peer_of(call.peer),
            method,
            code,
            reason,
            call.module,
            call.engine,
            call.origin if code == _OK else "",
            call.request_id,
            call.about,
        )
    )
