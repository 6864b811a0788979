"""A mirror on loopback that serves one CPython, packed as python-build-standalone packs its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.wheel_index import serving

# uv puts a mirror in the place of this.
_RELEASES = "https://github.com/astral-sh/python-build-standalone/releases/download"
_LEFT_OUT = {"test", "idlelib", "tkinter", "lib2to3", "__pycache__", "site-packages"}


def packed(prefix: Path, version: str) -> bytes:
    """Return the archive of the CPython that is installed at ``prefix``."""
    minor = version.rpartition(".")[0]
    library = f"lib/python{minor}"

    def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = info.name.rpartition("/")[2]
        if name in _LEFT_OUT or name.startswith("config-") or name.endswith(".a"):
            return None
        info.uid = info.gid = 0
        return info

    written = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=written, mode="wb", compresslevel=1) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        archive.add((prefix / "bin" / f"python{minor}").resolve(), f"python/bin/python{minor}")
        for name in ("python3", "python"):
            link = tarfile.TarInfo(f"python/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"python{minor}"
            archive.addfile(link)
        archive.add(prefix / library, f"python/{library}", filter=chosen)
        for shared in sorted((prefix / "lib").glob(f"libpython{minor}*.so*")):
            archive.add(shared, f"python/lib/{shared.name}")
    return written.getvalue()


def listing(version: str, archive: bytes) -> str:
    """Return what uv reads instead of its own list of downloads: this one, with its SHA-256."""
    major, minor, patch = map(int, version.split("."))
    machine = platform.machine()
    key = f"cpython-{version}-linux-{machine}-gnu"
    file = f"cpython-{version}+20260101-{machine}-unknown-linux-gnu-install_only.tar.gz"
    build = {
        "name": "cpython",
        "arch": {"family": machine, "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": f"{_RELEASES}/20260101/{file.replace('+', '%2B')}",
        "sha256": hashlib.sha256(archive).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    return json.dumps({key: build})


@dataclass
class Mirror:
    """A mirror that runs."""

    url: str
    asked: list[str]
    """The paths that were fetched."""


@contextmanager
def serve_archive(archive: bytes) -> Iterator[Mirror]:
    """Serve an archive under every name."""
    asked: list[str] = []

    def file_at(path: str) -> bytes:
        asked.append(path)
        return archive

    with serving(file_at) as address:
        yield Mirror(f"{address}/mirror", asked)
