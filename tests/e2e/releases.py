"""Releases of wasmkiln, built from their commits as their users installed them.

Each is built once for all runs, under ``.work/releases/``.
"""

from __future__ import annotations

import fcntl
import io
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.programs import ROOT

COMMITS = {"0.6.0": "8b84f1b551f4dc99652b4aeff90ea09e7d60bc3b"}
BUILD_TIMEOUT_S = 900
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Release:
    """A release in an environment of its own."""

    version: str
    folder: Path

    @property
    def programs(self) -> Path:
        """Where its programs are."""
        return self.folder / "venv" / "bin"

    @property
    def wasmkilnd(self) -> str:
        """The path of its daemon."""
        return str(self.programs / "wasmkilnd")

    @property
    def wasmkiln(self) -> str:
        """The path of its command."""
        return str(self.programs / "wasmkiln")

    @property
    def python(self) -> str:
        """The path of the Python that has its client."""
        return str(self.programs / "python")


@cache
def release(version: str) -> Release:
    """Return a release, built if it is not there; skip where the history does not have it."""
    commit = COMMITS[version]
    source = _archived(commit)
    if source is None:
        pytest.skip(f"this checkout does not have commit {commit[:7]}, which {version} is built of")
    built = Release(version, ROOT / ".work" / "releases" / version)
    built.folder.parent.mkdir(parents=True, exist_ok=True)
    with built.folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = built.folder / "complete"
        if not (marker.is_file() and marker.read_text() == commit):
            shutil.rmtree(built.folder, ignore_errors=True)
            _build(built, source)
            marker.write_text(commit)
    return built


def _archived(commit: str) -> bytes | None:
    """Return a commit's files as a tar archive; None where they cannot be had."""
    if not shutil.which("git"):
        return None
    archive = ("git", "archive", "--format=tar", commit)
    done = subprocess.run(archive, cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _build(built: Release, source: bytes) -> None:
    """Do what its Makefile's ``install`` does, with a copy of the package instead of a link."""
    tree = built.folder / "source"
    with tarfile.open(fileobj=io.BytesIO(source)) as archive:
        archive.extractall(tree, filter="data")
    _run(sys.executable, "-m", "venv", str(built.folder / "venv"))
    locked = ("--require-hashes", "--only-binary", ":all:", "-r", "requirements/server.txt")
    _run(built.python, *_PIP, *locked, cwd=tree)
    _run(built.python, *_PIP, "--no-deps", "--no-build-isolation", ".", cwd=tree)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"cannot build the release: {done.stderr[-4000:]}"
