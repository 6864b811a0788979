"""A release, as users get it: built, installed outside of the tree, run, and published."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from scripts.release import CLIENTS, SUMS, build, build_packages
from scripts.version import ROOT, version_of
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.programs import WASMKILN, installed_engines
from tests.operators.upload_index import serve_uploads

VERSION = version_of(ROOT)
UV = find_uv_bin()
# So that a build of the sources, which have no history, gets the same dates.
DATE = "1700000000"
# Some hundred packages are fetched and unpacked.
pytestmark = pytest.mark.timeout(900)
# It adds two numbers.
ADD = base64.b64decode("AGFzbQEAAAABBwFgAn9/AX8DAgEABwcBA2FkZAAACgkBBwAgACABags=")
EMPTY = b"\0asm\x01\0\0\0"
_PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WHO = itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL"))
GIT = {f"GIT_{who}_{what}": "t@example.org" for who, what in WHO}


def _oldest_python() -> str:
    """The oldest Python here that can run the daemon: what only newer ones accept is found."""
    for name in ("python3.11", "python3.12"):
        found = shutil.which(name)
        words = [found or "", "-c", "import venv, ensurepip"]
        if found and subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return found
    return sys.executable


PYTHON = _oldest_python()


def _is_here(version: str) -> bool:
    words = [UV, "python", "find", "--quiet", "--no-python-downloads", version]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


# Of those that the client supports with wasmtime; a machine has some of them.
PYTHONS = [version for version in ("3.11", "3.12", "3.13", "3.14") if _is_here(version)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of a release of this checkout."""
    folder = tmp_path_factory.mktemp("release") / "dist"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", DATE)
        build(folder)
    return folder


@pytest.fixture(scope="module")
def sources(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the sources, unpacked outside of any repository."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(dist / f"wasmkiln-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"wasmkiln-{VERSION}"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the release, by the digests that it names."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    _run(PYTHON, "-m", "venv", str(folder))
    locked = dist / f"wasmkiln-{VERSION}-requirements.txt"
    words = ["--no-compile", "--require-hashes", "--only-binary=:all:", f"--find-links={dist}"]
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *words, "-r", str(locked))
    return folder / "bin"


def test_the_sources_build_the_same_wheel(
    dist: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    wheel, _ = build_packages(tmp_path, VERSION, sources)
    assert wheel.read_bytes() == (dist / wheel.name).read_bytes()


def test_the_sources_are_those_of_the_repository(sources: Path) -> None:
    """Also where builds in .work have links that lead back to them."""
    tracked = _run("git", "-C", str(ROOT), "ls-files").splitlines()
    assert len(tracked) > 500
    assert [name for name in tracked if not (sources / name).exists()] == []


def test_the_sums_are_those_of_all_files(dist: Path) -> None:
    lines = [line.split("  ") for line in (dist / SUMS).read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in dist.iterdir()
        if file.name != SUMS
    }
    for kind in (".whl", ".tar.gz", "requirements.txt", "changes.md", ".tgz", ".binpb"):
        assert any(name.endswith(kind) for name in sums), kind


def test_each_clients_archive_has_its_folder_and_the_contract(dist: Path) -> None:
    tracked = _run("git", "-C", str(ROOT), "ls-files").splitlines()
    protos = {name for name in tracked if name.endswith(".proto")}
    for language, (archive, folder) in CLIENTS.items():
        start = f"client/{language}/"
        held = {name.removeprefix(start) for name in tracked if name.startswith(start)}
        held |= protos | {"LICENSE"}
        with tarfile.open(dist / archive.format(VERSION)) as tar:
            names = tar.getnames()
        assert set(names) == {f"{folder.format(VERSION)}/{each}" for each in held}
        assert len(names) > 10


def test_the_wheel_works_outside_of_the_tree(installed: Path, tmp_path: Path) -> None:
    assert VERSION in _run(installed / "wasmkilnd", "--version")
    where = _run(installed / "python", "-c", "import wasmkiln; print(wasmkiln.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    installed_engines()
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with Daemon(state, command=[str(installed / "wasmkilnd")]) as daemon:
        _compile(installed / "wasmkiln", daemon, tmp_path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon of this tree, for clients of the wheel."""
    installed_engines()
    state = fresh_state(tmp_path_factory.mktemp("served") / "state", engines=("wasmtime-50.0.1",))
    with Daemon(state) as served:
        yield served


@pytest.mark.parametrize("version", PYTHONS)
def test_the_first_program_runs_as_printed(
    dist: Path, daemon: Daemon, tmp_path: Path, version: str
) -> None:
    """That of the README and that of the five minutes, with the wheel and an engine alone."""
    python = tmp_path / "venv" / "bin" / "python"
    _run(UV, "venv", "--quiet", "--python", version, str(tmp_path / "venv"))
    [wheel] = dist.glob("*.whl")
    install = ("pip", "install", "--quiet", "--python", str(python))
    _run(UV, *install, str(wheel), f"wasmtime=={importlib.metadata.version('wasmtime')}")
    printed = []
    for page in ("README.md", "docs/start/five-minutes.md"):
        [program] = re.findall(
            r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
        )
        (tmp_path / "run.py").write_text(program)
        [name] = re.findall(r'kiln\.module\("(.*?)"', program)
        (tmp_path / name).write_bytes(ADD)
        environ = {"WASMKILN_ADDRESS": daemon.address}
        printed.append(_run(python, "run.py", cwd=tmp_path, **environ))
    assert printed == ["", "5"]
    assert version in _run(python, "--version")


def test_one_command_serves_from_nothing(dist: Path, tmp_path: Path) -> None:
    """uvx makes the environment; the first start installs the engines."""
    [wheel] = dist.glob("*.whl")
    uvx = [*(UV, "tool", "run", "--quiet", "--from", f"{wheel}[server]")]
    environ = {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_PYTHON": PYTHON}
    # The environment first: a daemon has two minutes to start, and a slow index needs more.
    assert VERSION in _run(*uvx, "wasmkilnd", "--version", cwd=tmp_path, **environ)
    with Daemon(tmp_path / "state", command=[*uvx, "wasmkilnd"], environ=environ) as daemon:
        with daemon.client() as client:
            names = {engine.engine.name for engine in client.capabilities().engines}
            assert "wasmtime" in names
        _compile(Path(WASMKILN), daemon, tmp_path)


def test_a_release_is_published_once(sources: Path, tmp_path: Path) -> None:
    """The sources are all that publishing needs: here they become a repository of their own."""
    repository = tmp_path / "repository"
    # The archive has that file besides those of the repository.
    shutil.copytree(sources, repository, ignore=shutil.ignore_patterns("PKG-INFO"))
    changelog = repository / "CHANGELOG.md"
    dated = re.sub(
        rf"^## {VERSION}.*$", f"## {VERSION}, 2026-11-28", changelog.read_text(), flags=re.MULTILINE
    )
    changelog.write_text(dated)
    (repository / "protos" / f"v{VERSION}.binpb").touch()
    _git(repository, "init", "--quiet", "--initial-branch", "main")
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "--message", "release")

    with serve_uploads() as index:
        environ = {
            "UV_PUBLISH_TOKEN": "a-token",
            "UV_PUBLISH_URL": index.upload_url,
            "UV_PUBLISH_CHECK_URL": index.index_url,
            "npm_config_registry": index.npm_registry,
            "UV_CACHE_DIR": str(tmp_path / "cache"),
            f"npm_config_{index.npm_registry.removeprefix('http:')}:_authToken": "a-token",
            **GIT,
        }

        _run(sys.executable, "-m", "scripts.publish", cwd=repository, **environ)
        wheel, archive = (f"wasmkiln-{VERSION}{kind}" for kind in ("-py3-none-any.whl", ".tar.gz"))
        uv = (UV, "publish", f"dist/{wheel}", f"dist/{archive}")
        _run(*uv, cwd=repository, **environ)
        _run("npm", "publish", cwd=repository / "client" / "node", **environ)
        assert sorted(index.files) == [wheel, archive]
        for name, data in index.files.items():
            assert data == (repository / "dist" / name).read_bytes()
        assert (index.npm["name"], *index.npm["versions"]) == ("wasmkiln", VERSION)
        assert all(each.startswith("Basic ") for each in index.credentials)

        # Again, as after an upload that broke off: what is there is skipped.
        del index.files[archive]
        _run(*uv, cwd=repository, **environ)
        assert len(index.files) == 2


def _compile(wasmkiln: Path, daemon: Daemon, folder: Path) -> None:
    (folder / "add.wasm").write_bytes(EMPTY)
    out = folder / "add.cwasm"
    words = ["compile", str(folder / "add.wasm"), "-o", str(out), "--address", daemon.address]
    _run(wasmkiln, *words)
    assert out.stat().st_size > 100


def _git(root: Path, *words: str) -> str:
    return _run("git", "-c", "commit.gpgsign=false", *words, cwd=root, **GIT)


def _run(
    program: Path | str, *words: str, cwd: Path = Path("/"), typed: str = "", **environ: str
) -> str:
    """Run a program that has to succeed, and is told what is typed; return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(program), *words],
        cwd=cwd,
        env={**inherited, **environ},
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{program} {words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()
