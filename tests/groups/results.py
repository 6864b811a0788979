"""What pytest says of each test, read from its report in JUnit's XML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.groups.inputs import Group


@dataclass
class Results:
    """The tests of one run, and of the second one of those that failed."""

    seconds: dict[str, float] = field(default_factory=dict)
    """How long each test took, by its name."""
    failed: set[str] = field(default_factory=set)
    """The names of those that have not passed."""

    def add(self, report: Path) -> None:
        """Take in a run: what passed in it has passed."""
        if not report.exists():
            return
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            self.seconds[name] = self.seconds.get(name, 0) + float(case.get("time") or 0)
            if any(case.find(kind) is not None for kind in ("failure", "error")):
                self.failed.add(name)
            else:
                self.failed.discard(name)

    @property
    def files(self) -> set[str]:
        """The files that ran."""
        return {file_of(name) for name in self.seconds}

    def seconds_of(self, group: Group) -> float | None:
        """Return how long a group took; None if a test failed, or one of its files did not run."""
        told = {
            name: took for name, took in self.seconds.items() if file_of(name) in group.test_files
        }
        if self.failed & told.keys() or not group.test_files <= self.files:
            return None
        return sum(told.values())


def file_of(name: str) -> str:
    """Return the file of a test's name: ``tests.soak.test_soak::test_x`` is in tests/soak."""
    return name.partition("::")[0].replace(".", "/") + ".py"
