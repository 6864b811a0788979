"""`engine install wasmer` without CPython 3.10 has uv fetch one, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.programs import WASMKILND, Installed, engines_of
from tests.e2e.python_mirror import listing, packed, serve_archive


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
    with serve_archive(archive) as mirror:
        environ |= {
            "UV_PYTHON_INSTALL_MIRROR": mirror.url,
            "UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads),
        }
        done = install(state, environ)
    assert done.returncode == 0, done.stderr
    assert f"fetching CPython 3.10 from {mirror.url}" in done.stderr
    assert [path.startswith("/mirror/20260101/cpython-") for path in mirror.asked] == [True]
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
    with serve_archive(archive) as mirror:
        environ["UV_PYTHON_INSTALL_MIRROR"] = mirror.url
        done = install(state, environ)
    assert mirror.asked
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot fetch CPython 3.10 from {mirror.url}: "), done.stderr
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
