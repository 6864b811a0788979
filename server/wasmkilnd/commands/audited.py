"""The audit of commands that change who is trusted, and who may do what."""

from __future__ import annotations

from pathlib import Path

import click

from wasmkilnd.commands.as_owner import invoker
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.audit import TO_LOG, AuditEvent, AuditFile, AuditLine


def audit_command(settings: Settings, what: str, **about: str | int | bool) -> None:
    """Write what a command has changed, if ``settings`` name an audit file.

    The identity is the user who ran it. A line that cannot be written is a warning: the change is
    made.
    """
    if settings.audit_file in ("", TO_LOG):  # A command has no log.
        return
    path = Path(settings.audit_file).expanduser()
    line = AuditLine(AuditEvent.CHANGE, f"uid:{invoker()}", about={"what": what, **about})
    try:
        AuditFile(path).append(line)
    except OSError as failure:
        click.echo(f"warning: cannot write the audit to {path}: {failure.strerror}", err=True)
