"""Charts as SVG, each with its axes, its legend and a sentence in place of the picture.

A drawing is stretched to the width that there is, so that it holds no text: axes and legends are
HTML around it. Colours are classes of the style sheet. Where the pointer rests, a column says what
it stands for, without a script.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from wasmkilnd.telemetry.status_page.history import COLUMNS, Figures, Window
from wasmkilnd.telemetry.status_page.markup import Markup, escaped, tag

_WIDE: Final = 600
_HIGH: Final = 150
_STEP: Final = _WIDE / COLUMNS


@dataclass(frozen=True, slots=True)
class Series:
    """One thing that a chart shows."""

    label: str
    colour: str
    """A class of the style sheet."""
    value: Callable[[Figures], float]
    line: bool = False
    """Whether it is a line before the others, rather than an area."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart over the last minutes."""

    name: str
    title: str
    series: Sequence[Series]
    words: Callable[[float], str]
    """A value as people read it."""
    summary: str
    """What the picture says, for those who do not see it."""
    top: float | None = None
    """The top of the axis; None for a round number above the highest value."""
    least: float = 0.0
    """What the axis reaches at least."""
    whole: bool = False
    """Whether values are whole numbers, so that the axis names no others."""
    stacked: bool = False
    legend: Sequence[str] = ()
    """What to say beside each label of the legend."""

    def drawn(self, window: Window) -> Markup:
        """Return the chart as a figure."""
        top = self.top or _round_up(
            max([self.least, *map(self._highest, window.known)]), whole=self.whole
        )
        return tag(
            "figure",
            tag("figcaption", tag("h3", self.title), self._legend()),
            tag(
                "div",
                tag(
                    "div",
                    *(tag("span", self.words(top * part)) for part in (1, 0.5, 0)),
                    class_="y",
                    aria_hidden="true",
                ),
                self._picture(window, top),
                tag(
                    "div",
                    *(tag("span", text) for text in _times(window.seconds)),
                    class_="x",
                    aria_hidden="true",
                ),
                class_="plot",
            ),
            class_="chart",
            id=f"chart-{self.name}",
        )

    def _highest(self, column: Figures) -> float:
        values = [series.value(column) for series in self.series]
        return sum(values) if self.stacked else max(values)

    def _picture(self, window: Window, top: float) -> Markup:
        areas: list[Markup] = []
        lines: list[Markup] = []
        heights = {
            index: [_HIGH * min(1.0, series.value(column) / top) for series in self.series]
            for index, column in enumerate(window.columns)
            if column
        }
        for number, series in enumerate(self.series):
            if series.line:
                lines.extend(_line(heights, number, series.colour))
            else:
                below = number if self.stacked else 0
                areas.append(_area(heights, below, number, series.colour))
        return tag(
            "svg",
            tag("path", d=f"M0 0H{_WIDE}M0 {_HIGH / 2:g}H{_WIDE}M0 {_HIGH}H{_WIDE}", class_="grid"),
            *areas,
            *lines,
            *self._columns(window),
            viewBox=f"0 0 {_WIDE} {_HIGH}",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"{self.title}: {self.summary}",
        )

    def _columns(self, window: Window) -> Iterable[Markup]:
        for index, column in enumerate(window.columns):
            if column is None:
                continue
            when = time.strftime("%H:%M:%S", time.localtime(column.begins_s))
            values = ", ".join(
                f"{series.label} {self.words(series.value(column))}" for series in self.series
            )
            # Written at once: there are some hundreds on a page, half of its cost.
            yield Markup(
                f'<g class="column"><title>{escaped(f"{when}: {values}")}</title>'
                f'<rect x="{index * _STEP:g}" y="0" width="{_STEP:g}" height="{_HIGH}"/></g>'
            )

    def _legend(self) -> Markup:
        said = self.legend or [""] * len(self.series)
        return tag(
            "ul",
            *(
                tag(
                    "li",
                    tag("i", class_=f"key {series.colour}", aria_hidden="true"),
                    series.label,
                    tag("b", words) if words else None,
                )
                for series, words in zip(self.series, said, strict=True)
            ),
            class_="legend",
        )


def _area(heights: dict[int, list[float]], first: int, number: int, colour: str) -> Markup:
    """Return what lies between the series from ``first`` up to ``number``, as columns."""
    steps = []
    for index, values in heights.items():
        high = values[number]
        if high <= 0:
            continue
        base = _HIGH - sum(values[:first]) if first else _HIGH
        steps.append(f"M{index * _STEP:g} {base:.1f}h{_STEP:g}v{-high:.1f}h{-_STEP:g}z")
    return tag("path", d="".join(steps) or "M0 0", class_=f"area {colour}")


def _line(heights: dict[int, list[float]], number: int, colour: str) -> Iterable[Markup]:
    steps, before = [], -2
    for index, values in heights.items():
        joined = "L" if index == before + 1 else "M"
        middle = _HIGH - values[number]
        steps.append(f"{joined}{index * _STEP:g} {middle:.1f}H{(index + 1) * _STEP:g}")
        before = index
    yield tag("path", d="".join(steps) or "M0 0", class_=f"line {colour}")


def _round_up(value: float, *, whole: bool) -> float:
    """Return a round number that is not below ``value``; half of it is round too."""
    value = max(value, 2.0 if whole else 0.0)
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    factors = (1, 2, 4, 6, 8, 10) if power > 1 or not whole else (2, 4, 6, 8, 10)
    return next(factor * power for factor in factors if factor * power >= value * 0.999)


def _times(seconds: float) -> Sequence[str]:
    minutes = int(seconds // 60)
    half = f"{minutes / 2:g} min"
    return (f"{minutes} min ago", half, "now")
