"""``python -m tests.groups``: run the tests, but for the groups that nothing touched."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.groups.inputs import ROOT, Group, digest, read_groups
from tests.groups.record import Pass, python_version, read_record, write_record
from tests.groups.results import Results
from tests.groups.unchanged import unchanged
from tests.sizes import FULL

# They have commands of their own.
_APART = ("tests/polyglot", "tests/operators")
_REPORTS = ROOT / ".work" / "tests"
_RECORDED = FULL or bool(os.environ.get("RECORD"))
_FINISHED = (0, 1)
"""What pytest ends with where each of its tests has run."""


def main() -> int:
    """Return the exit code."""
    options, given = _parsed(sys.argv[1:])
    groups = read_groups()
    everything = _RECORDED or given or options.groups
    known = [] if everything else unchanged(groups, read_record())
    left_out = [path for group in known for path in group.tests]
    chosen = [group for group in groups if group.name in options.groups]
    paths = [path for group in chosen for path in group.tests]
    before = {group.name: digest(group) for group in groups} if _RECORDED else {}
    results = Results()
    code = _pytest("first.xml", results, options.processes, left_out, [*given, *paths])
    # Of a run that was cut short nobody knows which tests are missing.
    whole = code in _FINISHED and not given and not os.environ.get("PYTEST_ADDOPTS")
    if code == 1:
        print(
            "make test: running what failed once more, alone: "
            "it passes if only the crowd was to blame",
            flush=True,
        )
        again = ["--last-failed", "--last-failed-no-failures", "none"]
        code = _pytest("again.xml", results, 0, left_out, [*again, *given, *paths])
    if before and whole:
        _remember([group for group in groups if _is_as(before, group)], results)
    _tell(known)
    return code


def _parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m tests.groups", allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=3, help="files that run side by side")
    parser.add_argument(
        "--groups", type=str.split, default=[], help="run the tests of these groups only"
    )
    known, given = parser.parse_known_args(arguments)
    unknown = set(known.groups) - {group.name for group in read_groups()}
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    return known, given


def _pytest(
    report: str, results: Results, processes: int, left_out: list[str], arguments: list[str]
) -> int:
    _REPORTS.mkdir(parents=True, exist_ok=True)
    file = _REPORTS / report
    file.unlink(missing_ok=True)
    crowd = ("-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder")
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("pytest")), f"--junitxml={file}"),
            *(f"--ignore={path}" for path in (*_APART, *left_out)),
            *(crowd if processes else ()),
            *arguments,
        ],
        cwd=ROOT,
        check=False,
    )
    results.add(file)
    return done.returncode


def _is_as(before: dict[str, str], group: Group) -> bool:
    try:
        return digest(group) == before[group.name]
    except FileNotFoundError:
        return False


def _remember(groups: list[Group], results: Results) -> None:
    """Write which groups passed whole; those that failed have to pass again."""
    record = read_record()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for group in groups:
        if not group.test_files & results.files:
            continue
        record.pop(group.name, None)
        if (seconds := results.seconds_of(group)) is not None:
            record[group.name] = Pass(
                digest(group), python_version(), today, version("wasmkiln"), round(seconds), FULL
            )
    write_record(record)


def _tell(known: list[Group]) -> None:
    record = read_record()
    for group in known:
        passed = record[group.name]
        what = "" if passed.full else ", not at its full size"
        print(
            f"not run: {group.name} (unchanged since it passed on {passed.date}"
            f" with {passed.version}{what}; {passed.seconds} s)"
        )
    if known:
        print("make test FULL=1 runs all", flush=True)


if __name__ == "__main__":
    sys.exit(main())
