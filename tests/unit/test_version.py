"""scripts/version.py: every copy of the version is found, compared and written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.version import COPIES, ROOT, SOURCE, differing, main, version_of, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with all files that hold the version, as they are here."""
    for place in (SOURCE, *COPIES):
        for file in ROOT.glob(place.files):
            there = tmp_path / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
    return tmp_path


def test_a_new_version_is_written_into_every_copy(tree: Path) -> None:
    assert list(differing(tree)) == []
    changed = write(tree, "17.0.4")
    assert version_of(tree) == "17.0.4"
    assert list(differing(tree)) == []
    for place in COPIES:
        if place.required:
            assert set(tree.glob(place.files)) <= set(changed), place
    # Once for the package and once for the root of its tree.
    assert (tree / "client/node/package-lock.json").read_text().count("17.0.4") == 2


def test_a_copy_that_was_forgotten_is_named_with_its_line(tree: Path) -> None:
    readme = tree / "README.md"
    readme.write_text(f"# wasmkiln\n\nwasmkilnd 0.0.1 is ready\n{readme.read_text()}")
    assert list(differing(tree)) == [f"README.md:3: 0.0.1 instead of {version_of(tree)}"]


def test_a_file_that_no_longer_holds_the_version_is_named(tree: Path) -> None:
    (tree / "client/cpp/CMakeLists.txt").write_text("project(wasmkiln LANGUAGES CXX)\n")
    [line] = differing(tree)
    assert line.startswith("client/cpp/CMakeLists.txt: nothing matches ")


def test_a_file_that_is_gone_is_an_error(tree: Path) -> None:
    (tree / "client/java/pom.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"pom\.xml"):
        list(differing(tree))


@pytest.mark.parametrize("version", ["1.2", "1.2.3rc1", "v1.2.3", ""])
def test_what_some_language_cannot_read_is_refused(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([version]) == 2
    assert "cannot use the version" in capsys.readouterr().err
