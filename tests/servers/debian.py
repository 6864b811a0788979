"""Programs of Debian for tests, without installing them: unpacked under .work/.

Installing the package would start a service on the machine of whoever runs the
tests. Its files alone are enough, and need no privileges.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2] / ".work" / "debian"
_PACKAGES = ("redis-server", "redis-tools")
# Those of its libraries that a minimal system may lack.
_LIBRARIES = ("libjemalloc2", "liblzf1", "libatomic1")
# CPython as Debian 13 has it, without what the tests do not import.
_ARM64_PYTHON = (
    *("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib"),
    *("libc6", "libgcc-s1", "libffi8", "zlib1g", "libexpat1"),
)
_TIMEOUT_S = 180


class DebianUnavailable(Exception):  # noqa: N818 - a state of the machine
    """The server cannot be had here; the message says why."""


@cache
def redis_server_binary() -> str:
    """Return the path of a redis-server that runs. Raises DebianUnavailable."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise DebianUnavailable("no redis-server on PATH, and this is no Debian to get it from")
    _HOME.mkdir(parents=True, exist_ok=True)
    script = _HOME / "redis-server"
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not script.exists():
            _unpack(script)
    return str(script)


@cache
def cosign_binary() -> str:
    """Return the path of a cosign that runs. Raises DebianUnavailable."""
    return _alone("cosign", "version")


@cache
def docker_registry_binary() -> str:
    """Return the path of a docker-registry that runs. Raises DebianUnavailable."""
    return _alone("docker-registry", "--version")


@cache
def skopeo_binary() -> str:
    """Return the path of a skopeo that runs. Raises DebianUnavailable."""
    return _alone("skopeo", "--version")


@cache
def qemu_binary(machine: str = "x86_64") -> str:
    """Return the path of a qemu that runs programs of a machine. Raises DebianUnavailable."""
    return _alone(f"qemu-{machine}", "--version", "qemu-user")


@cache
def arm64_python() -> tuple[str, ...]:
    """Return the command of a CPython for aarch64 that qemu runs here. Raises DebianUnavailable."""
    qemu, home = qemu_binary("aarch64"), _HOME / "arm64"
    root, there = home / "root", home / "complete"
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.exists():
            for folder in ("lists/partial", "cache/archives/partial"):
                (home / folder).mkdir(parents=True, exist_ok=True)
            own = {"Dir::State::lists": f"{home}/lists", "Dir::Cache": f"{home}/cache"}
            own |= {"Dir::State::status": "/dev/null", "APT::Sandbox::User": "root"}
            own |= {"APT::Architecture": "arm64", "APT::Architectures": "arm64"}
            words = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
            try:
                _apt(*words, "update", folder=home)
                _apt(*words, "download", *_ARM64_PYTHON, folder=home)
            except subprocess.SubprocessError as failure:
                raise DebianUnavailable(f"no CPython for aarch64: {failure}") from None
            for package in home.glob("*.deb"):
                _extract(package, root)
            with suppress(FileExistsError):
                (root / "lib").symlink_to("usr/lib")
            there.touch()
    [python] = (root / "usr" / "bin").glob("python3.[0-9]*")
    return qemu, "-L", str(root), str(python)


def _alone(name: str, asks_version: str, package: str = "") -> str:
    """Return a program that needs no other package than its own, of the same name if not given."""
    package = package or name
    if on_path := shutil.which(name):
        return on_path
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise DebianUnavailable(f"no {name} on PATH, and this is no Debian to get it from")
    _HOME.mkdir(parents=True, exist_ok=True)
    binary = _HOME / "root" / "usr" / "bin" / name
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _download(package)
            for file in _HOME.glob(f"{package}_*.deb"):
                _extract(file)
    version = subprocess.run([str(binary), asks_version], capture_output=True, check=False)
    if version.returncode:
        raise DebianUnavailable(f"Debian's {name} does not run here: {version.stderr!r}")
    return str(binary)


def _unpack(script: Path) -> None:
    root = _HOME / "root"
    _download(*_PACKAGES, *_LIBRARIES)
    for package in _HOME.glob("*.deb"):
        _extract(package)
    [binary] = root.glob("usr/bin/redis-server")
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-*"))
    draft = script.with_suffix(".new")
    draft.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{binary}" "$@"\n')
    draft.chmod(0o755)
    version = subprocess.run([str(draft), "--version"], capture_output=True, check=False)
    if version.returncode:
        raise DebianUnavailable(f"Debian's redis-server does not run here: {version.stderr!r}")
    draft.rename(script)


def _extract(package: Path, root: Path = _HOME / "root") -> None:
    subprocess.run(["dpkg", "-x", package, root], check=True, timeout=_TIMEOUT_S)


def _download(*packages: str) -> None:
    try:
        _apt("download", *packages)
    except subprocess.SubprocessError:
        # The machine's own lists may be missing or old: fetch them, to a place of our own.
        private = ("-o", f"Dir::State::lists={_HOME}/lists", "-o", f"Dir::Cache={_HOME}/cache")
        for folder in ("lists/partial", "cache/archives/partial"):
            (_HOME / folder).mkdir(parents=True, exist_ok=True)
        try:
            _apt(*private, "update")
            _apt(*private, "download", *packages)
        except subprocess.SubprocessError as failure:
            raise DebianUnavailable(f"{packages[0]} cannot be downloaded: {failure}") from None


def _apt(*words: str, folder: Path = _HOME) -> None:
    subprocess.run(
        ["apt-get", "-qq", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=_TIMEOUT_S,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
