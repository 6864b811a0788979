"""The exit codes of the command, in one table that --help prints too."""

from __future__ import annotations

from enum import IntEnum

from wasmkiln.errors import (
    CompileQueueFull,
    ConnectionFailed,
    CredentialsInvalid,
    CredentialsMissing,
    DeadlineExceeded,
    ModuleQuarantined,
    QuotaExceeded,
    RoleMissing,
    ServerDraining,
    WorkerUnavailable,
)


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    DEADLINE = 4
    NOT_NOW = 5
    DENIED = 6
    INTERRUPTED = 130


_MEANING = {
    Exit.OK: "done",
    Exit.REFUSED: "refused: a bad module, file or attestation, or a failure of the daemon",
    Exit.USAGE: "wrong usage",
    Exit.UNREACHABLE: "cannot connect to a daemon",
    Exit.DEADLINE: "no answer within --timeout",
    Exit.NOT_NOW: "not now: queue full, no worker, draining, quarantined, unhealthy, a tier down, "
    "a quota used up",
    Exit.DENIED: "not let in: credentials are missing or do not count, or a role is missing",
    Exit.INTERRUPTED: "interrupted",
}

# \b: click does not wrap this paragraph.
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {_MEANING[code]}" for code in Exit)

_BY_ERROR: tuple[tuple[type[Exception], Exit], ...] = (
    (ConnectionFailed, Exit.UNREACHABLE),
    (DeadlineExceeded, Exit.DEADLINE),
    (CompileQueueFull, Exit.NOT_NOW),
    (ServerDraining, Exit.NOT_NOW),
    (WorkerUnavailable, Exit.NOT_NOW),
    (ModuleQuarantined, Exit.NOT_NOW),
    (QuotaExceeded, Exit.NOT_NOW),
    (CredentialsMissing, Exit.DENIED),
    (CredentialsInvalid, Exit.DENIED),
    (RoleMissing, Exit.DENIED),
)


def exit_for(error: Exception) -> Exit:
    """Return the code for a failure; REFUSED where it has no code of its own."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.REFUSED)
