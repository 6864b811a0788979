"""Builds deploy/Dockerfile, and runs what comes out, with podman.

No registry of images is in reach. So the official images of Python that the Dockerfile begins with
are replaced by two of the same shape: this system's release of Debian, small, with its own Python;
and the same with a CPython 3.10 in /usr/local, which is the one that this machine has.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.e2e.programs import ROOT

STORE = ROOT / ".work" / "operators" / "containers"
IMAGE = "localhost/wasmkiln:tested"
PYTHON, PYTHON310 = "localhost/python:3.13", "localhost/python:3.10"
# What the interpreters of the official images are linked to.
_PACKAGES = (
    *("python3", "python3-venv", "ca-certificates", "libssl3t64", "libsqlite3-0", "libffi8"),
    *("libbz2-1.0", "liblzma5", "libreadline8t64"),
)
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


CONFINED = (
    *("--pull=never", "--read-only", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges"),
)
"""Flags of a container that can do nothing but what its user can."""


def ran_by_podman(*words: str) -> subprocess.CompletedProcess[str]:
    """Run podman to its end."""
    return subprocess.run(
        [
            *("podman", "--root", str(STORE / "root"), "--runroot", str(STORE / "run")),
            # crun does not know all ways to mount control groups.
            *("--runtime", "/usr/sbin/runc", "--cgroup-manager", "cgroupfs"),
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"},
    )


def podman(*words: str) -> str:
    """Run podman, which must succeed; return what it prints."""
    done = ran_by_podman(*words)
    assert done.returncode == 0, f"podman {words[0]}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def limits() -> list[str]:
    """Return flags for the limits of this process: podman's own may be above what it may set."""
    kinds = {"nproc": resource.RLIMIT_NPROC, "nofile": resource.RLIMIT_NOFILE}
    return [
        f"--ulimit={name}={':'.join(map(str, resource.getrlimit(of)))}"
        for name, of in kinds.items()
    ]


def make_bases(python310: Path) -> None:
    """Make the images that stand in for Python's; ``python310`` is the folder of a CPython 3.10."""
    STORE.mkdir(parents=True, exist_ok=True)
    release = dict(
        line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines()
    )["VERSION_CODENAME"]
    if not _exists(PYTHON):
        folder, packed = STORE / "debian", STORE / "debian.tar"
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        subprocess.run(
            [
                *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
                *(release, str(folder)),
            ],
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-C", str(folder), "-cf", str(packed), "."], check=True)
        podman("import", str(packed), PYTHON)
        subprocess.run(["rm", "-rf", str(folder), str(packed)], check=True)
    if not _exists(PYTHON310):
        recipe = STORE / "Dockerfile.python310"
        recipe.write_text(f"FROM {PYTHON}\nCOPY . /usr/local/\n")
        podman("build", *limits(), "--tag", PYTHON310, "--file", str(recipe), str(python310))


def build() -> None:
    """Build deploy/Dockerfile."""
    podman(
        *("build", "--file", str(ROOT / "deploy" / "Dockerfile"), "--tag", IMAGE),
        # Only Docker's format of images has health checks.
        *("--format", "docker", "--pull=never", "--isolation", "chroot", "--network", "host"),
        *limits(),
        *("--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"),
        *("--build-arg", f"PYTHON={PYTHON}", "--build-arg", f"PYTHON310={PYTHON310}"),
        str(ROOT),
    )


@cache
def config() -> Mapping[str, Any]:
    """Return what the image says of how to run it."""
    found: Mapping[str, Any] = json.loads(podman("inspect", "--type", "image", IMAGE))[0]
    return found


@contextmanager
def running(name: str, *words: str) -> Iterator[None]:
    """Run a container until the context ends; words are its flags, image and arguments."""
    podman("run", "--detach", "--name", name, *CONFINED, *limits(), *words)
    try:
        yield
    finally:
        podman("rm", "--force", "--time", "90", name)


def log_of(name: str) -> str:
    """Return what a container's daemon logged."""
    done = ran_by_podman("logs", name)
    return done.stdout + done.stderr


def _exists(image: str) -> bool:
    return bool(podman("images", "--quiet", image))
