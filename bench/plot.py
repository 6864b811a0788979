"""The ratios with their goals, as a picture for docs/reference/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.lab import ROOT
from bench.results import Row

FILE = ROOT / "docs" / "reference" / "performance.svg"

_TITLE = "Ratios to yardsticks, on a logarithmic axis: less is better"
_SVG = "http://www.w3.org/2000/svg"
_WIDTH = 1100
_ROW_HEIGHT, _OTHER_HEIGHT = 24, 150
# GitHub's colours for text, success and danger, which are readable on its own backgrounds.
_LIGHT = {"text": "#1f2328", "lines": "#d1d9e0", "met": "#1a7f37", "missed": "#d1242f"}
_DARK = {"text": "#f0f6fc", "lines": "#3d444d", "met": "#3fb950", "missed": "#f85149"}
_CSS = """
text, .title, .legends .legend text, .axis text, .axis.x text.major, .axis.y text.major {{
  fill: {text};
}}
.axis path, .axis .guides, .axis .line, .axis .guide.line {{
  stroke: {lines}; stroke-dasharray: none;
}}
.graph .color-0, .legends .color-0 {{ fill: {met}; stroke: {met}; }}
.graph .color-1, .legends .color-1 {{ fill: {missed}; stroke: {missed}; }}
.graph .color-2, .legends .color-2 {{ fill: none; stroke: {text}; stroke-width: 2; }}
"""


def write(rows: Sequence[Row], file: Path) -> None:
    """Write the picture. The same rows make the same bytes."""
    file.write_bytes(svg([row for row in rows if row.goal is not None]))


def svg(rows: Sequence[Row]) -> bytes:
    """Return the picture of rows that have goals."""
    drawn = ElementTree.fromstring(_chart(rows).render(is_unicode=True))
    _tidy(drawn)
    drawn.set("role", "img")
    drawn.set("aria-labelledby", "title desc")
    for at, (name, text) in enumerate((("title", _TITLE), ("desc", _in_words(rows)))):
        element = ElementTree.Element(f"{{{_SVG}}}{name}", {"id": name})
        element.text = text
        drawn.insert(at, element)
    ElementTree.register_namespace("", _SVG)
    ElementTree.indent(drawn, " ")
    return ElementTree.tostring(drawn) + b"\n"


def _chart(rows: Sequence[Row]) -> Any:
    # Only here: it leaves a finder in sys.meta_path that pytest cannot import through.
    import pygal
    from pygal.style import Style

    dark = f"@media (prefers-color-scheme: dark) {{ {_CSS.format(**_DARK)} }}"
    chart = pygal.HorizontalLine(
        logarithmic=True,
        stroke=False,
        no_prefix=True,
        js=(),
        css=("file://style.css", "file://graph.css", f"inline:{_CSS.format(**_LIGHT)}{dark}"),
        style=Style(
            background="transparent",
            plot_background="transparent",
            font_family="system-ui, sans-serif",
            label_font_size=12,
            major_label_font_size=12,
            legend_font_size=13,
            title_font_size=16,
        ),
        title=_TITLE,
        width=_WIDTH,
        height=_ROW_HEIGHT * len(rows) + _OTHER_HEIGHT,
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        dots_size=5,
        margin_right=30,
        show_x_guides=True,
        show_y_guides=True,
        truncate_label=-1,
    )
    chart.x_labels = [f"{row.group}: {row.what}" for row in rows]
    chart.y_labels = list(_decades(rows))
    chart.add("ratio, goal met", [row.ratio if row.met else None for row in rows])
    chart.add("ratio, goal missed", [None if row.met else row.ratio for row in rows])
    chart.add("goal: at most", [row.goal for row in rows])
    return chart


def _decades(rows: Sequence[Row]) -> Iterator[float]:
    """Yield powers of ten around all that is shown."""
    shown = [value for row in rows for value in (row.ratio, row.goal) if value]
    mark = 0.001
    while mark * 10 <= min(shown, default=1.0):
        mark *= 10
    yield mark
    while mark < max(shown, default=1.0):
        mark *= 10
        yield round(mark, 6)


def _tidy(drawn: ElementTree.Element) -> None:
    """Remove what serves pygal's scripts, which a picture in a page does not run."""
    for parent in drawn.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("script", "title", "desc"):
                parent.remove(child)


def _in_words(rows: Sequence[Row]) -> str:
    return " ".join(
        f"{row.group}: {row.what}: {row.ratio:.2g}, at most {row.goal:g},"
        f" {'met' if row.met else 'missed'}."
        for row in rows
    )
