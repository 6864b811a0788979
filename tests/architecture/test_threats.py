"""The page of threats goes through STRIDE at each boundary; each defence names its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOUNDARIES = [
    *("Caller", "Network", "Job", "Redis", "Store", "Host", "Operator", "Collector", "Browser"),
    *("Fetched CPython", "Supply chain"),
]


def tables() -> dict[str, list[list[str]]]:
    """Return the rows of threats by boundary."""
    text = (ROOT / "docs" / "explanation" / "threats.md").read_text()
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        rows = [line for line in lines if line.startswith("| ")]
        found[name] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]
    return found


def test_every_boundary_has_a_table() -> None:
    assert list(tables()) == BOUNDARIES


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_kind_of_threat_is_answered(boundary: str) -> None:
    rows = tables()[boundary]
    assert [row[0] for row in rows] == list("STRIDE")
    for letter, threat, defence, tests, _ in rows:
        assert threat, f"{boundary}, {letter}"
        assert defence, f"{boundary}, {letter}"
        named = re.findall(r"`(tests/[^`]+)`", tests)
        # What has no defence says so.
        assert named or defence.startswith("none: "), f"{boundary}, {letter}: no test"
        assert all((ROOT / name).exists() for name in named)
