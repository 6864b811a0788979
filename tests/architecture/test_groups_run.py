"""``make test`` in a repository of one group: what runs, its exit code, and what is recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.groups.inputs import ROOT

PASSES = "def test_it() -> None: pass\n"
FAILS_ONCE = """
import pathlib
def test_it():
    been = pathlib.Path(__file__).with_name("been")
    first = not been.exists()
    been.touch()
    assert not first
"""
IS_CUT_SHORT = """
import pytest
def test_it(): pass
def test_another(): pytest.exit("enough", 2)
"""
CHANGES_WHAT_IT_IMPORTS = """
import pathlib
from tests import helper
def test_it(): pathlib.Path(helper.__file__).write_text("changed = 1")
"""
REMOVES_WHAT_IT_IMPORTS = """
import pathlib
from tests import helper
def test_it(): pathlib.Path(helper.__file__).unlink()
"""


class Repository:
    """A checkout in which ``make test`` can run."""

    def __init__(self, root: Path) -> None:
        shutil.copytree(
            ROOT / "tests/groups",
            root / "tests/groups",
            ignore=shutil.ignore_patterns("__pycache__", "passed.json"),
        )
        shutil.copy(ROOT / "tests/sizes.py", root / "tests")
        self._root = root
        self.record = root / "tests/groups/passed.json"
        for name in ("tests/__init__.py", "requirements/dev.txt", "requirements/server.txt"):
            self.write(name, "")
        self.write("pyproject.toml", "[tool.pytest.ini_options]\npythonpath = ['.']\n")
        self.write("tests/groups/groups.toml", "[runs]\n[dear]\ntests = ['tests/dear']\n")
        self.write("tests/helper.py", "")
        self.write("tests/always/test_always.py", PASSES)
        self.dear(f"from tests import helper\n{PASSES}")

    def write(self, name: str, text: str) -> None:
        """Make a file of the repository."""
        (self._root / name).parent.mkdir(parents=True, exist_ok=True)
        (self._root / name).write_text(text)

    def dear(self, text: str) -> None:
        """Say what the tests of the group are."""
        self.write("tests/dear/test_dear.py", text)

    def make_test(self, *arguments: str, **settings: str) -> tuple[int, str]:
        """Return the exit code, and what was said."""
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "COV_")) and name not in ("FULL", "RECORD")
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.groups", "--processes", "0", *arguments],
            cwd=self._root,
            # No plugin is needed, and to import them all takes most of the time.
            env={**mine, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_group_is_left_out_until_what_it_imports_changes(repository: Repository) -> None:
    code, said = repository.make_test()
    assert (code, repository.record.exists()) == (0, False), said
    assert "2 passed" in said

    assert repository.make_test(RECORD="1")[0] == 0
    code, said = repository.make_test()
    assert (code, "1 passed" in said, "not run: dear" in said) == (0, True, True), said

    repository.write("tests/helper.py", "changed = 1")
    code, said = repository.make_test()
    assert (code, "2 passed" in said, "not run" in said) == (0, True, False), said


def test_what_fails_runs_once_more_and_that_decides(repository: Repository) -> None:
    repository.dear(FAILS_ONCE)
    code, said = repository.make_test(RECORD="1")
    assert (code, "once more, alone" in said) == (0, True), said
    assert "dear" in repository.record.read_text()

    repository.dear("def test_it(): assert False")
    code, said = repository.make_test(RECORD="1")
    assert (code, said.count("1 failed")) == (1, 2), said
    assert "dear" not in repository.record.read_text()


def test_a_failure_that_cannot_run_once_more_stays_one(repository: Repository) -> None:
    """Where pytest cannot note what failed, nothing is left to run in the second run."""
    repository.dear("def test_it(): assert False")
    repository.write("no-folder", "")
    code, said = repository.make_test("-o", "cache_dir=no-folder/cache")
    assert code != 0, said


@pytest.mark.parametrize(
    ("dear", "arguments", "settings"),
    [
        (PASSES, ["-k", "it"], {}),
        (PASSES, [], {"PYTEST_ADDOPTS": "-k it"}),
        (IS_CUT_SHORT, [], {}),
        (CHANGES_WHAT_IT_IMPORTS, [], {}),
        (REMOVES_WHAT_IT_IMPORTS, [], {}),
    ],
    ids=["some tests", "some tests by the environment", "cut short", "changed", "removed"],
)
def test_a_run_that_shows_less_is_not_recorded(
    repository: Repository, dear: str, arguments: list[str], settings: dict[str, str]
) -> None:
    repository.dear(dear)
    code, said = repository.make_test(*arguments, RECORD="1", **settings)
    assert code == (2 if dear == IS_CUT_SHORT else 0), said
    assert not repository.record.exists() or "dear" not in repository.record.read_text(), said
