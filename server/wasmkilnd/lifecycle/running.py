"""Which daemons run on a state directory, and how their last reload ended.

::

    <state_dir>/daemons/            0700
    <state_dir>/daemons/<pid>.json  0600  written whole at the start and at each reload

The daemon removes its file when it stops. A file that a killed daemon left counts for nothing: it
has the time at which the process started, which the kernel tells of each process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from wasmkilnd.ownership import NotOurs, make_folder
from wasmkilnd.whole_files import write_whole

log = structlog.get_logger("wasmkilnd")


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that serves, and its reloads."""

    pid: int
    began: int
    """When the process started, as the kernel counts."""
    version: str = ""
    reloads_begun: int = 0
    reloads_ended: int = 0
    refused: str = ""
    """Why the last reload changed nothing; empty if it could be applied."""
    need_restart: tuple[str, ...] = ()
    """Settings that the last reload found changed, and could not apply."""
    status: str = ""


class RunningFile:
    """A daemon's own file. Its methods may block, and never raise."""

    def __init__(self, state_dir: Path) -> None:
        self._path = _folder(state_dir) / f"{os.getpid()}.json"

    def write(self, daemon: RunningDaemon) -> None:
        """Replace the file."""
        try:
            make_folder(self._path.parent, private=True)
            write_whole(self._path, json.dumps(asdict(daemon)).encode())
        except (NotOurs, OSError) as failure:
            log.warning("cannot say in a file how reloads end", cause=str(failure))

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def began(pid: int) -> int:
    """Return when a process started, as the kernel counts; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # A dead process that nobody has waited for yet runs no more.
    return 0 if fields[0] == "Z" else int(fields[19])


def running(state_dir: Path) -> Sequence[RunningDaemon]:
    """Return the daemons that run on ``state_dir``."""
    found = (_read(path) for path in sorted(_folder(state_dir).glob("*.json")))
    return [daemon for daemon in found if daemon and began(daemon.pid) == daemon.began]


def remove_stale(state_dir: Path) -> None:
    """Remove the files that killed daemons left."""
    for path in _folder(state_dir).glob("*.json"):
        found = _read(path)
        if found is None or began(found.pid) != found.began:
            with contextlib.suppress(OSError):
                path.unlink()


def _folder(state_dir: Path) -> Path:
    return state_dir / "daemons"


def _read(path: Path) -> RunningDaemon | None:
    try:
        fields = json.loads(path.read_bytes())
        fields["need_restart"] = tuple(fields["need_restart"])
        daemon = RunningDaemon(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return daemon if type(daemon.pid) is int and daemon.pid > 1 else None
