"""The exit codes of the command: one table, which --help prints too."""

from __future__ import annotations

from enum import IntEnum

from wasmkiln.errors import (
    CompileQueueFull,
    ConnectionFailed,
    DeadlineExceeded,
    ModuleQuarantined,
    ServerDraining,
    WorkerUnavailable,
)


class Exit(IntEnum):
    """What the command exits with."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    DEADLINE = 4
    NOT_NOW = 5
    INTERRUPTED = 130


_MEANING = {
    Exit.OK: "done",
    Exit.REFUSED: "the daemon refused or failed (a bad module …), or a file or attestation did",
    Exit.USAGE: "wrong usage",
    Exit.UNREACHABLE: "no daemon answers",
    Exit.DEADLINE: "no answer within --timeout",
    Exit.NOT_NOW: "not now: queue full, no worker, draining, quarantined, unhealthy, a silent tier",
    Exit.INTERRUPTED: "interrupted",
}

# Click keeps the lines of a paragraph that begins with \b as they are.
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {_MEANING[code]}" for code in Exit)

_BY_ERROR: tuple[tuple[type[Exception], Exit], ...] = (
    (ConnectionFailed, Exit.UNREACHABLE),
    (DeadlineExceeded, Exit.DEADLINE),
    (CompileQueueFull, Exit.NOT_NOW),
    (ServerDraining, Exit.NOT_NOW),
    (WorkerUnavailable, Exit.NOT_NOW),
    (ModuleQuarantined, Exit.NOT_NOW),
)


def exit_for(error: Exception) -> Exit:
    """The code for a failure; REFUSED for all that have none of their own."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.REFUSED)
