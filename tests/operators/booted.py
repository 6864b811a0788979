"""systemd as the first process of namespaces of its own, over a copy of this system.

What it writes is in memory and gone at the end: the root is an overlay. It has a network and
cgroups of its own, and may change no setting of the kernel.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Self

from tests.e2e.processes import children_of, eventually
from tests.e2e.programs import ROOT

SITE = Path(sysconfig.get_path("purelib"))
_PYTHON = Path(sys.executable).resolve()
_HIDDEN = ("/home/", "/root/", "/run/user/")
"""What a service with ProtectHome= does not see."""

# It is root's shell in new namespaces. $1 is an empty folder; pairs of a folder and where it is to
# be seen follow.
_PREPARE = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
root="$1/root"
shift
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --rbind "$1" "$root$2"
    shift 2
done
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for each in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$each"; done
chmod 1777 tmp
for each in null zero random urandom tty full; do
    touch "dev/$each"
    mount --bind "/dev/$each" "dev/$each"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
chmod 1777 dev/shm
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires
mkdir -p was
pivot_root . was
umount -l /was
exec env -i container=wasmkiln-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /usr/lib/systemd/systemd --system --unit=basic.target --show-status=no
"""


def why_not() -> str:
    """Return why systemd cannot be booted here; empty if it can be tried."""
    if os.geteuid() != 0:
        return "only root can boot systemd"
    if str(_PYTHON).startswith(_HIDDEN):
        return f"{_PYTHON} is in a home directory, which a service cannot see"
    if not _cgroups():
        return "there are no cgroups of version 2 here"
    return ""


class Booted:
    """A system that has booted once the context is entered."""

    def __init__(self, see: dict[Path, str]) -> None:
        """``see`` are folders of this system, and where they are seen."""
        self._folder = tempfile.TemporaryDirectory(prefix="wasmkiln-boot-")
        self._cgroup = Path(_cgroups()) / Path(self._folder.name).name
        self._see = [word for pair in see.items() for word in map(str, pair)]
        self._process: subprocess.Popen[str] | None = None
        self._first = 0

    def __enter__(self) -> Self:
        """Boot. Raise AssertionError if it does not."""
        self._cgroup.mkdir()
        inside = ["sh", "-c", _PREPARE, "boot", self._folder.name, *self._see]
        unshare = ["unshare", "-pfmCuin", "--kill-child", "--propagation", "private", *inside]
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh"]
        self._process = subprocess.Popen(
            [*enter, str(self._cgroup), *unshare],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            eventually(self._has_booted, "systemd does not boot", 90)
        except AssertionError:
            said = self._end()
            raise AssertionError(f"systemd does not boot: {said}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root."""
        enter = ["nsenter", f"--target={self._first}", "--all", "--root", "--wd"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
        done = subprocess.run(
            [*enter, *clean, *words], capture_output=True, text=True, timeout=180, check=False
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file there."""
        self.run("install", "-D", "-m", mode, "/dev/null", path)
        self.run("sh", "-c", f'printf %s "$1" >{path}', "sh", text)

    def _has_booted(self) -> bool:
        assert self._process
        assert self._process.poll() is None, "it has ended"
        if not self._first:
            [self._first, *_] = children_of(self._process.pid) or [0]
        if not self._first:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _end(self) -> str:
        assert self._process
        self._process.kill()
        said = self._process.communicate(timeout=60)[0]
        with contextlib.suppress(AssertionError):
            eventually(self._remove_cgroups, "its cgroups stay", 30)
        self._folder.cleanup()
        return said

    def _remove_cgroups(self) -> bool:
        for folder in sorted(self._cgroup.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self._cgroup.rmdir()
        return not self._cgroup.exists()


def checkout() -> dict[Path, str]:
    """Return what a service needs to run this checkout, and where it sees it."""
    return {ROOT: "/opt/checkout", SITE: "/opt/site"}


def program(module: str) -> str:
    """Return a script that runs a module of the checkout, as a command that pip installed."""
    paths = "/opt/checkout/server:/opt/checkout/client:/opt/site"
    return f'#!/bin/sh\nPYTHONPATH={paths} exec {_PYTHON} -B -m {module} "$@"\n'


def _cgroups() -> str:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and options.split(",")[0] == "rw":
            return place
    return ""
