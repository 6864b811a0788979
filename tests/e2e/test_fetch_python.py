"""`engine install wasmer` without CPython 3.10 has uv fetch one, and says so."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.programs import WASMKILND, Installed, engines_of
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
    with tarfile.open(fileobj=written, mode="w:gz", compresslevel=1) as archive:
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


@contextmanager
def serve_archive(archive: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve an archive under every name; yield the mirror's URL, and the paths that are fetched."""
    asked: list[str] = []

    def file_at(path: str) -> bytes:
        asked.append(path)
        return archive

    with serving(file_at) as address:
        yield f"{address}/mirror", asked


@dataclass(frozen=True)
class OldPython:
    """A CPython of this machine that wasmer runs in, which the tests hide and pack."""

    prefix: Path
    version: str


@pytest.fixture(scope="module")
def old(engines: Installed) -> OldPython:
    [wasmer] = [engine for engine in engines if engine.name == "wasmer"]
    python = wasmer.interpreter.resolve()
    version = subprocess.check_output([python, "--version"], text=True).split()[1]
    if not version.startswith("3.10."):
        pytest.skip("this machine has no CPython 3.10 that a mirror could serve")
    return OldPython(python.parent.parent, version)


@pytest.fixture(scope="module")
def archive(old: OldPython) -> bytes:
    return packed(old.prefix, old.version)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which no version manager is found."""
    if Path("/usr/bin/python3.10").exists() or Path("/usr/local/bin/python3.10").exists():
        pytest.skip("the system has a CPython 3.10 of its own, which nothing can hide")
    kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    return {**kept, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYENV_ROOT": ""}


def install(state: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [WASMKILND, "engine", "install", "wasmer", "--state-dir", str(state)]
    return subprocess.run(words, env=environ, capture_output=True, text=True)


def test_it_is_fetched_from_a_mirror_and_wasmer_runs_in_it(
    tmp_path: Path, environ: dict[str, str], old: OldPython, archive: bytes
) -> None:
    state, downloads = tmp_path / "state", tmp_path / "downloads.json"
    downloads.write_text(listing(old.version, archive))
    with serve_archive(archive) as (mirror, asked):
        environ |= {
            "UV_PYTHON_INSTALL_MIRROR": mirror,
            "UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads),
        }
        done = install(state, environ)
    assert done.returncode == 0, done.stderr
    assert f"fetching CPython 3.10 from {mirror}" in done.stderr
    assert [path.startswith("/mirror/20260101/cpython-") for path in asked] == [True]
    [engine] = engines_of(state)
    assert (engine.name, engine.version) == ("wasmer", "1.1.0")
    said = subprocess.check_output([engine.interpreter, "--version"], text=True)
    assert said == f"Python {old.version}\n"
    assert state / "pythons" in engine.interpreter.resolve().parents
    imported = "import wasmer, wasmer_compiler_cranelift"
    subprocess.run([engine.interpreter, "-I", "-c", imported], check=True)
    # What it fetched is found again.
    shutil.rmtree(engine.path)
    index = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0"}
    again = install(state, environ | index)
    assert f"wasmer: using CPython {old.version} at {state / 'pythons'}/" in again.stderr


def test_what_has_another_digest_than_uv_knows_is_refused(
    tmp_path: Path, environ: dict[str, str], archive: bytes
) -> None:
    state = tmp_path / "state"
    with serve_archive(archive) as (mirror, asked):
        environ["UV_PYTHON_INSTALL_MIRROR"] = mirror
        done = install(state, environ)
    assert asked
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot fetch CPython 3.10 from {mirror}: "), done.stderr
    assert "Hash mismatch" in last
    assert "UV_PYTHON_INSTALL_MIRROR" in last
    assert not list((state / "pythons").glob("cpython-*"))


def test_a_first_start_without_it_serves_wasmtime_alone(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    environ |= {"UV_PYTHON_INSTALL_MIRROR": "http://127.0.0.1:1/mirror", "UV_HTTP_RETRIES": "0"}
    with (
        Daemon(tmp_path / "state", ["--redis-url", "none", "--workers", "1"], environ) as daemon,
        daemon.client() as client,
    ):
        assert {each.engine.name for each in client.capabilities().engines} == {"wasmtime"}
        assert "this machine has no CPython 3.9 to 3.10: fetching CPython 3.10" in daemon.log
        assert "cannot fetch CPython 3.10 from http://127.0.0.1:1/mirror" in daemon.log
        assert "UV_PYTHON_INSTALL_MIRROR" in daemon.log
