"""The audit of a daemon: where it goes, and the lines about the daemon itself."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

from wasmkilnd.access.guard import Access
from wasmkilnd.access.tls import TlsFiles
from wasmkilnd.ports import AuditEvent, AuditLine, Auditor
from wasmkilnd.settings import Settings
from wasmkilnd.signing.keys import Keys
from wasmkilnd.telemetry.audit.audit import Audit, Target, ToFile, ToLog
from wasmkilnd.telemetry.audit.file import AuditFile

TO_LOG = "log"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CannotAudit(Exception):  # noqa: N818 - says what the daemon cannot do
    """The audit file cannot be used; the message says why and what to do."""


def open_target(settings: Settings) -> Target | None:
    """Open where ``settings`` send the audit. May block. Raises CannotAudit.

    On a full disk the daemon serves: it counts the lines that are lost until there is room.
    """
    if not settings.audit_file:
        return None
    if settings.audit_file == TO_LOG:
        return ToLog()
    path = Path(settings.audit_file).expanduser()
    file = AuditFile(path, settings.audit_file_bytes, settings.audit_files)
    try:
        file.open()
        file.close()  # The first line opens it again: the settings may not be taken over.
    except OSError as failure:
        if failure.errno not in _FULL:
            raise CannotAudit(cannot_write_audit(path, failure)) from None
    return ToFile(file)


def cannot_write_audit(path: Path, failure: OSError) -> str:
    """Return why the audit cannot go to ``path``, and what to do."""
    return (
        f"cannot write the audit to {path}: {failure.strerror}; name a file in a folder"
        f" that the daemon may write to with audit_file, or {TO_LOG} for its log"
    )


def prepare_audit(audit: Audit) -> Callable[[Settings], Callable[[], None]]:
    """Return how the audit takes over settings at a reload; the file is opened anew."""

    def prepare(new: Settings) -> Callable[[], None]:
        target = open_target(new)
        return lambda: audit.use(target)

    return prepare


def audit_start(auditor: Auditor, version: str, keys: Keys) -> None:
    """Write that the daemon starts, and with which keys."""
    about: dict[str, str | int | bool] = {
        "version": version,
        "key_id": keys.own_id,
        "trusted_keys": len(keys.trusted),
    }
    auditor.write(AuditLine(AuditEvent.START, about=about))


def end_audit(audit: Audit) -> None:
    """Write that the daemon ends, and close the audit."""
    audit.write(AuditLine(AuditEvent.STOP))
    audit.close()


def audit_settings(auditor: Auditor, fields: Iterable[str]) -> None:
    """Write which settings a reload changes; their values are in the log, without secrets."""
    for field in fields:
        audit_change(auditor, "setting", setting=field)


def audit_engines(auditor: Auditor, served: Iterable[str], removed: Iterable[str]) -> None:
    """Write which engines a reload serves, and which it serves no more."""
    for engine_id in served:
        audit_change(auditor, "engine_served", engine=engine_id)
    for engine_id in removed:
        audit_change(auditor, "engine_removed", engine=engine_id)


def audit_access(auditor: Auditor, before: Access, after: Access) -> None:
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


def audit_tls(auditor: Auditor, files: TlsFiles | None) -> None:
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


def audit_change(auditor: Auditor, what: str, **about: str | int | bool) -> None:
    """Write that something was read again and differs."""
    auditor.write(AuditLine(AuditEvent.CHANGE, about={"what": what, **about}))
