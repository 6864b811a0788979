"""What the daemons stand on: a Redis, a bucket and a disk, and how each of them fails."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.objects import OBJECTS, ObjectSite, answers
from tests.faults.proxy import Line
from tests.faults.site import Kind, Site, killed, line, running_site, stopped, told

_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
# More than the host store may take, so that only the soak fills it.
_MOUNT = 'mount -t tmpfs -o size=48m,mode=0700 disk "$0" && echo && exec cat'
AS_ANYBODY = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
"""Without capabilities root may read no more than others may."""
_VALKEY_SETTINGS = ("--maxmemory", "128mb", "--maxmemory-policy", "allkeys-lru")
_chance = random.Random(5)


@dataclass(frozen=True)
class Disk:
    """A file system that all daemons share. It is there in a namespace of its own."""

    folder: Path
    pid: int

    @property
    def seen(self) -> Path:
        """Its folder, as seen from outside of the namespace."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    def enter(self, *command: str) -> tuple[str, ...]:
        """Return what runs a command that sees the disk."""
        target = f"--target={self.pid}"
        return ("nsenter", target, "--user", "--mount", "--preserve-credentials", *command)


@contextmanager
def _running_disk(folder: Path) -> Iterator[Disk]:
    """Mount it. It goes with the process that has the namespace, which reads until we close."""
    folder.mkdir()
    command = (*_NAMESPACE, "sh", "-ec", _MOUNT, str(folder))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline(), "cannot mount a file system in a namespace of its own"
        yield Disk(folder, holder.pid)


@contextmanager
def _full(disk: Disk) -> Iterator[None]:
    """No byte is free."""
    filler = disk.seen / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextmanager
def _read_only(disk: Disk) -> Iterator[None]:
    # Who opens a file to write it just before it is read-only makes it busy for a moment.
    shut = 'mount --bind "$0" "$0"; until mount -o remount,bind,ro "$0"; do sleep 0.05; done'
    for script in (shut, 'umount -l "$0"'):
        command = disk.enter("sh", "-ec", script, str(disk.folder))
        subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
        if script is shut:
            yield


@contextmanager
def _unreadable(disk: Disk) -> Iterator[None]:
    """Every fourth file or folder of an entry has mode 000."""
    modes = {}
    for path in list((disk.seen / "store").glob("[0-9a-f]*/??/**/*")):
        if _chance.random() < 0.25:
            with contextlib.suppress(OSError):  # A daemon removed it, or its folder is closed.
                modes[path] = path.stat().st_mode
                path.chmod(0)
    yield
    for path, mode in modes.items():
        with contextlib.suppress(FileNotFoundError):
            path.chmod(mode)


def _slow_line() -> Line:
    return Line(delay_s=_chance.uniform(0, 0.4), bytes_per_s=_chance.choice((0, 200_000)))


@dataclass(frozen=True)
class Ground:
    """All of it, running."""

    redis: Site
    bucket: ObjectSite
    disk: Disk

    @property
    def environment(self) -> dict[str, str]:
        """What daemons are told, as variables."""
        store = {"WASMKILN_HOST_STORE_DIR": str(self.disk.folder / "store")}
        return {**self.bucket.environment, **self.redis.environment, **store}


_OF_A_SERVER = (
    Kind("killed, started again", killed, 2.0),
    Kind("stopped, continued", stopped, 4.0),
    Kind("behind a slow line", line(_slow_line), 4.0),
)
FAULTS: Mapping[str, Sequence[Kind]] = {
    "redis": (*_OF_A_SERVER, Kind("flushed", told("FLUSHALL\nSCRIPT FLUSH", "PING"))),
    "bucket": (
        *_OF_A_SERVER,
        Kind("refuses all with 403", answers("403 Forbidden"), 4.0),
        Kind("refuses reads with 403", answers("403 Forbidden", only_to=b"GET "), 4.0),
        Kind("refuses writes with 403", answers("403 Forbidden", only_to=b"PUT "), 4.0),
    ),
    "disk": (
        Kind("full", _full, 6.0),
        Kind("read-only", _read_only, 6.0),
        Kind("with entries of mode 000", _unreadable, 6.0),
    ),
}
"""How each part of the ground fails; how long a fault lasts is how long it lasts at most."""


@contextmanager
def running_ground(folder: Path) -> Iterator[Ground]:
    """Start everything; it ends with the context."""
    with ExitStack() as stack:
        disk = stack.enter_context(_running_disk(folder / "disk"))
        redis = stack.enter_context(running_site(folder / "redis", _VALKEY_SETTINGS))
        yield Ground(redis, stack.enter_context(OBJECTS.running(folder / "bucket")), disk)
