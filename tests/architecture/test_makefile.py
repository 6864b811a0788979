"""`make help` lists every target, and `make test` runs what failed once more, alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT

PASSES = "def test_it(): pass\n"
FAILS = "def test_it(): assert False\n"
FAILS_ONCE = """
import pathlib
def test_it():
    been = pathlib.Path(__file__).with_name("been")
    first = not been.exists()
    been.touch()
    assert not first
"""
CANNOT_BE_READ = "import nothing_of_this_name\n"
IS_CUT_SHORT = f"import pytest\n{PASSES}def test_another(): pytest.exit('enough', 2)\n"
AGAIN = "running what failed once more, alone"
MENDED = "FAILED IN THE CROWD, PASSED ALONE"


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    ours = ("MAKE", "PYTEST_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), *arguments],
        cwd=folder,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def make_test(folder: Path, tests: str, arguments: str = "", crowd: str = "") -> tuple[bool, str]:
    """Return whether `make test` succeeds where these are all tests, and what it says."""
    (folder / "test_crowd.py").write_text(tests)
    done = make(
        # In no crowd, and without plugins: to import them takes most of the time.
        *("-o", ".venv/.dev", "test", f"CROWD={crowd}"),
        *(f"BIN={Path(sys.executable).parent}", f"ARGS={arguments}"),
        folder=folder,
    )
    return done.returncode == 0, done.stdout


def test_help_lists_every_target_on_a_line_that_fits() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [targets] = re.findall(r"^\.PHONY: (.*\\\n.*)$", makefile, re.MULTILINE)
    said = make("help").stdout
    # A rule with many targets takes a line for them, and one for what they do.
    told = re.findall(r"^  make ([a-z -]{19,}) *\n {26}\S|^  make (.{18}) \S", said, re.MULTILINE)
    assert len(told) == f"\n{said}".count("\n  make ")
    assert " ".join(map("".join, told)).split() == targets.replace("\\", "").split()
    assert len(told) <= 15
    assert [line for line in said.splitlines() if len(line) >= 100] == []


@pytest.mark.parametrize(
    ("tests", "expected"),
    # Whether the run passes, whether something runs once more, and whether it is told as mended.
    [
        (PASSES, (True, False, False)),
        (FAILS_ONCE + PASSES.replace("it", "another"), (True, True, True)),
        (FAILS, (False, True, False)),
    ],
    ids=["passes", "passes alone", "fails"],
)
def test_what_fails_runs_once_more_alone(
    tmp_path: Path, tests: str, expected: tuple[bool, bool, bool]
) -> None:
    passed, said = make_test(tmp_path, tests)
    assert (passed, AGAIN in said, MENDED in said) == expected, said
    assert said.count("PASSED test_crowd.py::test_it") == int(MENDED in said)
    assert "PASSED test_crowd.py::test_another" not in said


def test_a_failure_that_cannot_run_once_more_stays_one(tmp_path: Path) -> None:
    """Where pytest cannot note what failed, nothing is left for the second run."""
    (tmp_path / "no-folder").write_text("")
    passed, said = make_test(tmp_path, FAILS, "-o cache_dir=no-folder/cache")
    assert (passed, AGAIN in said, MENDED in said) == (False, True, False), said


@pytest.mark.parametrize(
    ("tests", "arguments"),
    [(CANNOT_BE_READ, ""), (IS_CUT_SHORT, ""), (PASSES, "-k none"), (PASSES, "--no-such-option")],
    ids=["cannot be read", "cut short", "none chosen", "wrong usage"],
)
def test_a_run_that_is_not_whole_fails(tmp_path: Path, tests: str, arguments: str) -> None:
    passed, said = make_test(tmp_path, tests, arguments)
    assert (passed, MENDED in said) == (False, False), said


def test_what_cannot_be_collected_is_not_left_out_of_a_crowd(tmp_path: Path) -> None:
    """The crowd runs all other tests first, and the second run would not look at it again."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "conftest.py").write_text(CANNOT_BE_READ)
    (tmp_path / "broken" / "test_unseen.py").write_text(PASSES)
    passed, said = make_test(tmp_path, FAILS_ONCE, crowd="-p xdist.plugin -n 1")
    assert (passed, "1 failed" in said, AGAIN in said) == (False, True, False), said
