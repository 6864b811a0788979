"""scripts/version.py: every copy of the version is found, compared and written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scripts.version import COPIES, ROOT, SOURCE, copies, differing, main, version_of, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with all files that hold the version, as they are here."""
    for place in (SOURCE, *COPIES):
        for file in ROOT.glob(place.files):
            there = tmp_path / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
    return tmp_path


def test_a_new_version_is_written_into_every_copy_and_nowhere_else(tree: Path) -> None:
    assert list(differing(tree)) == []
    old = version_of(tree)
    before = {file: file.read_text() for file in tree.rglob("*") if file.is_file()}
    write(tree, "17.0.4")
    assert version_of(tree) == "17.0.4"
    assert list(differing(tree)) == []
    for place in COPIES:
        for file, found in copies(tree, place):
            assert found[2] == "17.0.4", (file, place)
    for file, text in before.items():
        lines = zip(text.splitlines(), file.read_text().splitlines(), strict=True)
        changed = [(was, now) for was, now in lines if was != now]
        # What was another value, as an engine's version, is that still.
        assert all(now == was.replace(old, "17.0.4") for was, now in changed), file
    # Once for the package and once for the root of its tree.
    assert (tree / "client/node/package-lock.json").read_text().count("17.0.4") == 2


def test_an_engine_in_an_example_has_the_version_of_its_id() -> None:
    """An answer has both: our own was written over an engine's once."""
    pattern = r'"id": "(\w+)-([^"]+)",\s*"name": "(\w+)",\s*"version": "([^"]+)"'
    examples = [
        found
        for page in (ROOT / "docs").rglob("*.md")
        for found in re.findall(pattern, page.read_text())
    ]
    assert [each for each in examples if each[:2] != each[2:]] == []
    assert ("wasmtime", "50.0.1", "wasmtime", "50.0.1") in examples


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
    [line] = differing(tree)
    assert line.startswith("client/java/pom.xml: nothing matches ")


@pytest.mark.parametrize("version", ["1.2", "1.2.3rc1", "v1.2.3", ""])
def test_what_some_language_cannot_read_is_refused(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([version]) == 2
    assert "cannot use the version" in capsys.readouterr().err
