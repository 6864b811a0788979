"""The ratios with their goals, as a picture for docs/reference/performance.md."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.lab import ROOT
from bench.rows import Row

FILE = ROOT / "docs" / "reference" / "performance.svg"

# Greys and colours that are readable on white and on dark pages.
_TEXT, _MET, _MISSED = "#818b98", "#2da44e", "#e5534b"


def svg(rows: Sequence[Row]) -> bytes:
    """Return the picture of rows that have goals. The same rows make the same bytes."""
    # Only here: it leaves a finder in sys.meta_path that pytest cannot import through.
    import pygal
    from pygal.style import Style

    colours = {"foreground": _TEXT, "foreground_strong": _TEXT, "foreground_subtle": _TEXT}
    clear = {"background": "transparent", "plot_background": "transparent"}
    chart = pygal.HorizontalLine(
        logarithmic=True,
        stroke=False,
        no_prefix=True,
        js=(),
        style=Style(colors=(_MET, _MISSED, _TEXT), **colours, **clear),
        title="Ratios to yardsticks, on a logarithmic axis: less is better",
        width=1100,
        height=24 * len(rows) + 150,
        legend_at_bottom=True,
        truncate_label=-1,
    )
    chart.x_labels = [f"{row.group}: {row.what}" for row in rows]
    chart.add("ratio, goal met", [row.ratio if row.met else None for row in rows])
    chart.add("ratio, goal missed", [None if row.met else row.ratio for row in rows])
    chart.add("goal: at most", [row.goal for row in rows])
    drawn: str = chart.render(is_unicode=True)
    # What serves pygal's tooltips: a picture in a page runs no script.
    return f"{re.sub('<script.*?</script>', '', drawn, flags=re.DOTALL)}\n".encode()
