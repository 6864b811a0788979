"""The table of the benchmark, as docs/reference/performance.md holds it."""

from __future__ import annotations

import pytest

from bench.results import Row, Unit, figure, markdown


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.000_002_15, "s", "2.15 µs"),
        (0.000_35, "s", "0.35 ms"),
        (0.6172, "s", "617 ms"),
        (12.34, "s", "12.3 s"),
        (78_700_000, "B", "78.7 MB"),
        (2_997_000_000, "B", "3.00 GB"),
    ],
)
def test_a_figure_has_three_digits_and_its_unit(value: float, unit: Unit, text: str) -> None:
    assert figure(value, unit) == text


def test_the_page_holds_each_row_with_its_goal_and_its_note_wrapped() -> None:
    row = Row("group", "what", 0.002, "the yardstick", 0.001, 2.0, (1.9, 2.1), 9, 1.5, "long " * 40)
    table, _, notes = markdown([row]).partition("\n\n")
    cells = "| group: what | 2.00 ms | the yardstick | 1.00 ms | 2.00 | 1.90 to 2.10 |"
    assert table.splitlines()[-1] == f"{cells} ≤ 1.5, **missed** |"
    assert notes.startswith("- group, what: long long")
    assert max(map(len, notes.splitlines())) < 100
