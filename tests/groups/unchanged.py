"""Which groups have passed with the very files that are there now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.groups.inputs import ROOT, Group, digest
from tests.groups.record import Pass, python_version


def unchanged(
    groups: Sequence[Group], record: Mapping[str, Pass], root: Path = ROOT
) -> list[Group]:
    """Return the groups whose result is known already."""
    return [group for group in groups if _is_known(group, record.get(group.name), root)]


def _is_known(group: Group, passed: Pass | None, root: Path) -> bool:
    if passed is None or passed.python != python_version():
        return False
    return passed.digest == digest(group, root)
