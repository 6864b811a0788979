"""scripts/release.py and publish.py: a release that is not ready is refused, and why."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.publish import Release, main
from scripts.release import NotReadyError, changes, requirements
from scripts.version import COPIES, ROOT, SOURCE, version_of
from tests.e2e.wheel_index import serve_wheels, wheel

VERSION = version_of(ROOT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that is ready: the files that are looked at, committed on main."""
    root = tmp_path / "tree"
    for place in (SOURCE, *COPIES):
        for file in ROOT.glob(place.files):
            there = root / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
    (root / "protos").mkdir()
    (root / "protos" / f"v{VERSION}.binpb").touch()
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION}, 2026-11-28\n\n- all of it\n")
    _git(root, "init", "--quiet", "--initial-branch", "main")
    _commit(root)
    return root


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    """An index that has another version."""
    with serve_wheels({("wasmkiln", "0.0.1"): wheel("wasmkiln", "0.0.1")}) as url:
        yield url


def test_what_is_ready_has_no_problem(tree: Path, index: str) -> None:
    assert list(Release(tree, index).problems()) == []


def _dirty(tree: Path) -> None:
    (tree / "new.py").touch()


def _on_a_branch(tree: Path) -> None:
    _git(tree, "switch", "--quiet", "--create", "topic")


def _without_changes(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## 0.0.1\n\n- first\n")
    _commit(tree)


def _without_a_date(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION}\n\n- all of it\n")
    _commit(tree)


def _without_the_contract(tree: Path) -> None:
    _git(tree, "rm", "--quiet", f"protos/v{VERSION}.binpb")
    _commit(tree)


def _with_an_old_copy(tree: Path) -> None:
    (tree / "README.md").write_text("wasmkilnd 0.0.1 is ready\n")
    _commit(tree)


def _tagged_before(tree: Path) -> None:
    _git(tree, "tag", f"v{VERSION}")
    (tree / "more.py").touch()
    _commit(tree)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_dirty, "the work tree has changes: commit them\n?? new.py"),
        (_on_a_branch, "this is not the branch main"),
        (_without_changes, f"CHANGELOG.md has no section '## {VERSION}'"),
        (_without_a_date, f"the section of {VERSION} in CHANGELOG.md has no date"),
        (_without_the_contract, f"protos/v{VERSION}.binpb is missing"),
        (_with_an_old_copy, f"README.md:1: 0.0.1 instead of {VERSION}"),
        (_tagged_before, f"the tag v{VERSION} is another commit: raise the version"),
    ],
)
def test_what_is_not_ready_is_refused(
    spoil: Callable[[Path], None], words: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Release, "published", lambda _: False)
    spoil(tree)
    [problem] = Release(tree).problems()
    assert words in problem


def test_a_version_that_is_published_is_refused(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_wheels({("wasmkiln", VERSION): wheel("wasmkiln", VERSION)}) as index:
        assert main(tree, ["--dry-run", "--index-url", index]) == 1
        assert f"{VERSION} is published already: raise the version" in capsys.readouterr().err
        # An upload that broke off after its first file goes on: the tag is this commit.
        _git(tree, "tag", f"v{VERSION}")
        assert list(Release(tree, index).problems()) == []


def test_an_index_without_the_package_has_no_version_of_it(tree: Path) -> None:
    with serve_wheels({("other", "1.0"): wheel("other", "1.0")}) as index:
        assert list(Release(tree, index).problems()) == []


def test_an_index_that_does_not_answer_is_a_problem(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip says "no matching distribution" for that too."""
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    [problem] = Release(tree, f"http://127.0.0.1:{port}/simple/").problems()
    assert problem.startswith("cannot ask the package index which versions it has")


def test_a_section_of_the_changelog_is_found() -> None:
    text = "# Changelog\n\n## 2.0.0\n\n- b\n\n## 1.0.0, 2026-01-01\n\n- a\n\n## 0.9.0\n\n"
    assert changes(text, "2.0.0") == "- b\n"
    assert changes(text, "1.0.0") == "- a\n"
    with pytest.raises(NotReadyError, match="is empty"):
        changes(text, "0.9.0")
    with pytest.raises(NotReadyError, match="no section"):
        changes(text, "1.0")


def test_the_requirements_name_the_release_by_its_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    first, rest = requirements("1.2.3", [tmp_path / "a"]).decode().split("\n# Written by", 1)
    assert first.endswith(
        "wasmkiln[server]==1.2.3 \\\n    --hash=sha256:"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert "grpcio==" in rest


def _git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *who, *words], check=True)


def _commit(root: Path) -> None:
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--allow-empty", "--message", "x")
