"""What daemons and commands share of a state directory: who runs there, and what is private.

::

    <state_dir>/daemons/            0700
    <state_dir>/daemons/<pid>.json  0600  written whole at the start and at each reload

It says how a daemon's last reload ended. The daemon removes its file when it stops. A file that a
killed daemon left counts for nothing: it has the time at which the process started, which the
kernel tells of each process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import structlog

from wasmkilnd.files.ownership import NotOurs, make_folder, take_back
from wasmkilnd.files.whole_files import write_whole
from wasmkilnd.settings import Settings

log = structlog.get_logger("wasmkilnd")

_PRIVATE = ("access", "daemons", "keys", "pins", "redis", "tls")


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that serves, when it began as the kernel counts, and how its last reload ended.

    ``refused`` is what that could not use, and why; ``need_restart`` the settings that it found
    changed, and could not apply.
    """

    pid: int
    began: int
    reloads_begun: int = 0
    reloads_ended: int = 0
    refused: str = ""
    need_restart: tuple[str, ...] = ()
    status: str = ""


_FIELDS = {field.name for field in fields(RunningDaemon)}


def write(state_dir: Path, daemon: RunningDaemon) -> None:
    """Replace a daemon's file. May block; never raises."""
    path = _folder(state_dir) / f"{daemon.pid}.json"
    try:
        make_folder(path.parent, private=True)
        write_whole(path, json.dumps(asdict(daemon)).encode())
    except (NotOurs, OSError) as failure:
        log.warning("cannot say in a file how reloads end", cause=str(failure))


def remove(state_dir: Path) -> None:
    """Remove this process's file. May block; never raises."""
    with contextlib.suppress(OSError):
        (_folder(state_dir) / f"{os.getpid()}.json").unlink()


def began(pid: int) -> int:
    """Return when a process started, as the kernel counts; 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # A dead process that nobody has waited for yet runs no more.
    return 0 if stat[0] == "Z" else int(stat[19])


def running(state_dir: Path, *, tidy: bool = False) -> Sequence[RunningDaemon]:
    """Return the daemons that run on ``state_dir``; ``tidy`` removes files of killed ones."""
    found = []
    for path in sorted(_folder(state_dir).glob("*.json")):
        if daemon := _read(path):
            found.append(daemon)
        elif tidy:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def take_back_private(settings: Settings) -> Sequence[tuple[Path, int]]:
    """Make this user's alone again what a container platform let the volume's group write to.

    Return where something was taken, and of how many files. May block; raise nothing.
    """
    private = {settings.state_dir / name for name in _PRIVATE} | {settings.effective_keys_dir}
    taken = ((folder, take_back(folder, private=True)) for folder in sorted(private))
    return [(folder, files) for folder, files in taken if files]


def _folder(state_dir: Path) -> Path:
    return state_dir / "daemons"


def _read(path: Path) -> RunningDaemon | None:
    """Return what a file says of a daemon that runs; None for nonsense, and for one that ended.

    The daemon may be of another release, which says more, or less.
    """
    try:
        said = json.loads(path.read_bytes())
        known = {name: said[name] for name in _FIELDS & said.keys()}
        daemon = RunningDaemon(**known | {"need_restart": tuple(said["need_restart"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    runs = type(daemon.pid) is int and daemon.pid > 1 and began(daemon.pid) == daemon.began
    return daemon if runs else None
