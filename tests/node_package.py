"""The package for Node as npm packs it, installed once into `.work/node`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "client" / "node"
_CACHE = ROOT / ".work" / "node"
_NPM = (
    "npm",
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
    "--prefer-offline",
    "--ignore-scripts=true",
)


@dataclass(frozen=True)
class NodePackage:
    """A folder whose `node_modules` holds the package and what it needs."""

    folder: Path

    @property
    def modules(self) -> Path:
        """Where programs find the package and what it needs."""
        return self.folder / "node_modules"

    @property
    def package(self) -> Path:
        """The installed package, with its tests."""
        return self.modules / "wasmkiln"

    def run(self, words: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run Node. A program finds the package from every folder."""
        return subprocess.run(
            ["node", *words],
            cwd=self.folder,
            env={**environ, "NODE_PATH": str(self.modules)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )


def node_package(cache: Path = _CACHE, *, dev: bool = False) -> NodePackage:
    """Pack and install it, unless that was done before. Skip the test where npm is missing.

    With `dev`, what only its examples and its types need is there too.
    """
    demand_npm()
    lock = (SOURCE / "package-lock.json").read_bytes()
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    installed = NodePackage(folder)
    # Files of tests run side by side.
    with (folder / ".lock").open("w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        marker, content = folder / ".package", _content()
        if not marker.exists():
            npm_ci(SOURCE, folder, *([] if dev else ["--omit=dev"]))
            # Its name would hide the package from programs in this folder.
            (folder / "package.json").write_text("{}")
        if not marker.exists() or marker.read_text() != content:
            _put_package(installed)
            marker.write_text(content)
    return installed


def demand_npm() -> None:
    """Skip the test where npm is missing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not on PATH")


def npm_ci(source: Path, folder: Path, *words: str) -> None:
    """Install into ``folder`` what ``source`` locks. Skip the test where that cannot be."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(source / name, folder / name)
    done = _npm(folder, "ci", *words)
    if done.returncode:
        pytest.skip(f"npm cannot install: {done.stderr.strip()[-300:]}")


def copy_sources(to: Path) -> None:
    """Copy what npm packs as a checkout has it: packing writes into it."""
    shutil.copytree(SOURCE, to / "client" / "node", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "protos", to / "protos")
    shutil.copy(ROOT / "LICENSE", to)


def _put_package(installed: NodePackage) -> None:
    """Pack a copy of the sources, since that writes into them, and unpack it."""
    copy = installed.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy_sources(copy)
    package = copy / "client" / "node"
    # With scripts: `prepack` fills the package.
    done = _npm(package, "pack", "--json", "--ignore-scripts=false")
    assert done.returncode == 0, done.stderr
    [packed] = json.loads(done.stdout[done.stdout.index("[") :])
    shutil.rmtree(installed.package, ignore_errors=True)
    installed.package.mkdir(parents=True)
    words = ["tar", "-xzf", str(package / packed["filename"]), "--strip-components=1"]
    subprocess.run(words, cwd=installed.package, check=True)
    shutil.copytree(SOURCE / "test", installed.package / "test")
    shutil.rmtree(copy)


def _npm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_NPM, *words], cwd=folder, capture_output=True, text=True, timeout=150, check=False
    )


def _content() -> str:
    digest = hashlib.sha256()
    for top in (SOURCE, ROOT / "protos", ROOT / "LICENSE"):
        for file in sorted([top, *top.rglob("*")]):
            if file.is_file() and "node_modules" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
