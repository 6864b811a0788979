"""Groups of tests are left out where nothing that they depend on has changed, and only there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.groups.inputs import ROOT, Group, digest, read_groups
from tests.groups.record import Pass, python_version, read_record, write_record
from tests.groups.results import Results
from tests.groups.unchanged import unchanged

GROUPS = {group.name: group for group in read_groups()}
PASS = Pass("", python_version(), "2026-11-28", "0.6.0", 7, full=True)
# What everything leans on: no change leaves these out.
ALWAYS = (
    *("tests/architecture", "tests/contract", "tests/formats", "tests/unit"),
    *("tests/e2e/test_daemon.py", "tests/e2e/test_errors.py", "tests/e2e/test_engines.py"),
    *("tests/e2e/test_error_table.py", "tests/e2e/test_fleet.py", "tests/e2e/test_reload.py"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one group in it."""
    files = {
        "tests/groups/groups.toml": """
            [runs.program]
            imports = ["server/wasmkilnd/run.py"]
            [dear]
            tests = ["tests/dear"]
            runs = ["program"]
            inputs = ["protos/*.proto"]
        """,
        "tests/conftest.py": "import tests.helper",
        "tests/helper.py": "",
        "tests/dear/test_it.py": "def test(): from tests import far; run('tests.named.program')",
        "tests/dear/corpus/one.bin": "1",
        "tests/dear/__pycache__/test_it.pyc": "",
        "tests/far.py": "",
        "tests/named/__init__.py": "",
        "tests/named/program.py": "",
        "tests/other/test_other.py": "",
        "server/wasmkilnd/__init__.py": "",
        "server/wasmkilnd/run.py": "from wasmkilnd import core",
        "server/wasmkilnd/core.py": "def start(): import wasmkiln.wire",
        "server/wasmkilnd/commands.py": "",
        "client/wasmkiln/wire.py": "",
        "protos/a.proto": "",
        "docs/page.md": "",
        **dict.fromkeys(("pyproject.toml", "requirements/dev.txt", "requirements/server.txt"), ""),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("tests/dear/test_it.py", True),
        ("tests/dear/test_new.py", True),
        ("tests/dear/corpus/one.bin", True),
        ("tests/conftest.py", True),
        ("tests/helper.py", True),
        ("tests/far.py", True),
        ("tests/named/program.py", True),
        ("tests/named/__init__.py", True),
        ("server/wasmkilnd/core.py", True),
        ("server/wasmkilnd/__init__.py", True),
        ("client/wasmkiln/wire.py", True),
        ("protos/a.proto", True),
        ("protos/b.proto", True),
        ("pyproject.toml", True),
        ("requirements/server.txt", True),
        ("tests/other/test_other.py", False),
        ("tests/dear/__pycache__/test_it.pyc", False),
        ("server/wasmkilnd/commands.py", False),
        ("docs/page.md", False),
    ],
)
def test_a_change_counts_where_the_tests_depend_on_it(tree: Path, file: str, counts: bool) -> None:
    [group] = read_groups(tree)
    record = {"dear": PASS._replace(digest=digest(group, tree))}
    assert unchanged([group], record, tree) == [group]
    (tree / file).write_text("changed = 1")
    again = read_groups(tree)
    assert unchanged(again, record, tree) == ([] if counts else again)


def test_a_file_that_is_renamed_or_gone_counts(tree: Path) -> None:
    def now() -> str:
        [group] = read_groups(tree)
        return digest(group, tree)

    seen = [now()]
    (tree / "tests/dear/corpus/one.bin").rename(tree / "tests/dear/corpus/two.bin")
    seen.append(now())
    (tree / "tests/dear/corpus/two.bin").unlink()
    seen.append(now())
    assert len(set(seen)) == 3


def test_a_result_of_another_python_does_not_count(tree: Path) -> None:
    [group] = read_groups(tree)
    passed = PASS._replace(digest=digest(group, tree))
    assert unchanged([group], {"dear": passed}, tree)
    assert not unchanged([group], {"dear": passed._replace(python="3.99")}, tree)
    assert not unchanged([group], {"another": passed}, tree)


def test_a_name_that_means_no_file_is_refused(tree: Path) -> None:
    (tree / "protos/a.proto").unlink()
    with pytest.raises(ValueError, match=r"protos/\*.proto names no file"):
        read_groups(tree)


def report(path: Path, **cases: str) -> Path:
    rows = "".join(
        f'<testcase classname="tests.dear.{name}" name="test" time="2.5">{inside}</testcase>'
        for name, inside in cases.items()
    )
    path.write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    return path


def test_a_group_has_passed_when_all_of_it_has(tmp_path: Path) -> None:
    files = frozenset({"tests/dear/test_a.py", "tests/dear/test_b.py"})
    group = Group("dear", ("tests/dear",), frozenset(), files)
    results = Results()
    results.add(report(tmp_path / "1", test_a=""))
    assert results.seconds_of(group) is None, "a file did not run"
    results.add(report(tmp_path / "2", test_b="<failure/>"))
    assert results.seconds_of(group) is None, "a test failed"
    results.add(report(tmp_path / "3", test_b="", test_c="<error/>"))
    assert results.seconds_of(group) == 7.5


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "passed.json"
    assert read_record(path) == {}
    write_record({"b": PASS, "a": PASS}, path)
    assert read_record(path) == {"a": PASS, "b": PASS}
    assert list(json.loads(path.read_text())) == ["a", "b"]


def test_no_group_has_what_always_runs_and_no_test_is_in_two() -> None:
    named = [path for group in GROUPS.values() for path in group.tests]
    assert len(named) == len(set(named))
    files = [file for group in GROUPS.values() for file in group.test_files]
    assert len(files) == len(set(files))
    assert [file for file in files if file.startswith(ALWAYS)] == []
    assert all(group.test_files for group in GROUPS.values())
    assert read_record().keys() <= GROUPS.keys()


@pytest.mark.parametrize("name", GROUPS)
def test_what_a_group_reads_besides_is_among_its_inputs(name: str) -> None:
    """A test that names a folder of the repository reads what is in it."""
    group = GROUPS[name]
    tops = {file.relative_to(ROOT).parts[0] for file in group.inputs}
    for file in sorted(group.test_files):
        text = (ROOT / file).read_text()
        for top in ("docs", "protos", "deploy", "scripts", "bench"):
            assert top in tops or f'ROOT / "{top}"' not in text, f"{file}: {top}"
        if re.search(r"\bDaemon\(|client: Client", text):
            assert ROOT / "server/wasmkilnd/run.py" in group.inputs, file
