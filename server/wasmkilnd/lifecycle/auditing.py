"""The lines of the audit about a daemon's start, and about who may do what."""

from __future__ import annotations

from wasmkilnd.access.guard import Access
from wasmkilnd.access.tls import TlsFiles
from wasmkilnd.signing.keys import Keys
from wasmkilnd.telemetry.audit import Audit, AuditEvent, AuditLine, audit_change


def audit_start(auditor: Audit, version: str, keys: Keys) -> None:
    """Write that the daemon starts, and with which keys."""
    about: dict[str, str | int | bool] = {"version": version, "key_id": keys.own_id}
    about["trusted_keys"] = len(keys.trusted)
    auditor.write(AuditLine(AuditEvent.START, about=about))


def audit_access(auditor: Audit, before: Access, after: Access) -> None:
    """Write how those who may do what differ from before."""
    if before.on != after.on:
        audit_change(auditor, "access", on=after.on)
    if before.policy != after.policy:
        audit_change(auditor, "policy", rules=len(after.policy.rules))
    old, new = (
        {each.id for each in it.tokens.all} if it.tokens else set() for it in (before, after)
    )
    if old != new:
        accepted, dropped = ",".join(sorted(new - old)), ",".join(sorted(old - new))
        audit_change(auditor, "tokens", accepted=accepted, dropped=dropped)


def audit_tls(auditor: Audit, files: TlsFiles | None) -> None:
    """Write from now on when the certificate or the CAs of callers are replaced."""
    if files is None:
        return
    before = files.current

    def tell() -> None:
        nonlocal before
        now = files.current
        if now.chain_pem != before.chain_pem:
            audit_change(auditor, "certificate", not_after=now.not_after.isoformat())
        if now.client_ca_pem != before.client_ca_pem:
            audit_change(auditor, "client_cas", count=len(now.client_cas))
        before = now

    files.on_change(tell)
