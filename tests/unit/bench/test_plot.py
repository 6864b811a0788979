"""The picture of the benchmark's ratios."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.plot import svg
from bench.results import Row

_NS = {"svg": "http://www.w3.org/2000/svg"}


def _row(what: str, ratio: float, goal: float) -> Row:
    return Row("group", what, ratio, "the yardstick", 1.0, ratio, (ratio, ratio), 9, goal)


def test_each_ratio_and_each_goal_is_a_dot_and_a_sentence() -> None:
    drawn = ElementTree.fromstring(svg([_row("fast", 0.05, 0.1), _row("slow", 12, 1.2)]))
    dots = [
        len(
            drawn.findall(
                f".//svg:g[@class='series serie-{number} color-{number}']//svg:circle", _NS
            )
        )
        for number in range(3)
    ]
    assert dots == [1, 1, 2]
    assert drawn.get("aria-labelledby") == "title desc"
    described = drawn.findtext("svg:desc", "", _NS)
    assert described == "group: fast: 0.05, at most 0.1, met. group: slow: 12, at most 1.2, missed."


def test_the_same_rows_make_the_same_bytes_and_no_script() -> None:
    rows = [_row("fast", 0.05, 0.1)]
    drawn = svg(rows)
    assert drawn == svg(rows)
    assert b"<script" not in drawn
    assert b"prefers-color-scheme" in drawn
